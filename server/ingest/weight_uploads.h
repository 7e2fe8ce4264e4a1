#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "compute/tensor/dtype.h"
#include "server/store/blob_store.h"
#include "server/store/job_store.h"

namespace quantd::server {

struct LayerKey {
  std::string tenant;
  std::string job;
  std::string layer;
  friend auto operator<=>(const LayerKey&, const LayerKey&) = default;
};

// "tenants/{tenant}/jobs/{job}/layers/{layer}", for messages.
std::string NameOf(const LayerKey& key);

// What the client says it will send; must equal what the job declares.
struct UploadDeclaration {
  compute::DType dtype = compute::DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
};

struct UploadProgress {
  int64_t committed_size = 0;
  int64_t size = 0;
  bool complete = false;
};

class WeightUploads;

// One writer's hold on one layer's upload. Every byte below committed_size survives a crash.
// Destroying it commits what was appended and lets the next writer in. Used by one thread at a
// time.
class WeightUpload {
 public:
  ~WeightUpload();
  // `offset` must equal the bytes appended so far (OUT_OF_RANGE). INVALID_ARGUMENT for a CRC that
  // does not fit, bytes beyond the matrix, half elements, NaN or Inf. A refused chunk changes
  // nothing.
  absl::Status Append(int64_t offset, absl::Span<const std::byte> data, uint32_t crc32c);
  // All bytes are there and have this digest: the weight is complete. DATA_LOSS on a mismatch; the
  // upload then starts over.
  absl::StatusOr<UploadProgress> Finish(absl::string_view sha256);
  // Makes what was appended durable.
  absl::StatusOr<UploadProgress> Commit();

 private:
  friend class WeightUploads;
  WeightUpload(WeightUploads& uploads, LayerKey key, const LayerRecord& layer,
               std::unique_ptr<BlobWriter> writer);

  WeightUploads& uploads_;
  const LayerKey key_;
  const compute::DType dtype_;
  const int64_t cols_;
  const int64_t size_;
  std::unique_ptr<BlobWriter> writer_;
  int64_t committed_;
  bool done_ = false;
};

// Resumable uploads of weight matrices. Thread-safe.
class WeightUploads {
 public:
  // `completed` is called after a weight became complete, from the uploading thread.
  WeightUploads(JobStore& jobs, BlobStore& blobs, int64_t max_weight_bytes,
                int max_streams_per_tenant, std::function<void(const LayerKey&)> completed);

  // ABORTED while another writer holds it; FAILED_PRECONDITION once complete or when the job has
  // ended; INVALID_ARGUMENT where the declaration differs from the job's; RESOURCE_EXHAUSTED at the
  // tenant's limit of open uploads or of stored bytes.
  absl::StatusOr<std::unique_ptr<WeightUpload>> Open(const LayerKey& key,
                                                     const UploadDeclaration& declaration);
  absl::StatusOr<UploadProgress> Status(const LayerKey& key);
  // Gives up what an unfinished upload has stored; a later one starts over. Returns its bytes.
  // ABORTED while a writer holds it.
  absl::StatusOr<int64_t> Discard(const LayerKey& key);
  // That are open, by tenant.
  std::map<std::string, int> OpenUploads();
  // Refuses new uploads from now on: UNAVAILABLE.
  void Drain() { draining_ = true; }

 private:
  friend class WeightUpload;
  absl::StatusOr<std::unique_ptr<BlobWriter>> OpenStaging(const LayerKey& key,
                                                          const LayerRecord& layer);
  absl::Status Hold(const LayerKey& key);

  JobStore& jobs_;
  BlobStore& blobs_;
  const int64_t max_weight_bytes_;
  const int max_streams_per_tenant_;
  const std::function<void(const LayerKey&)> completed_;
  std::atomic<bool> draining_{false};
  absl::Mutex mutex_;
  std::set<LayerKey> held_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace quantd::server
