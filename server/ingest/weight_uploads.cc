#include "server/ingest/weight_uploads.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "compute/tensor/checksum.h"
#include "compute/tensor/tensor.h"
#include "server/errors/error.h"
#include "server/store/failpoint.h"

namespace quantd::server {
namespace {

// Appended bytes become durable at least this often, so that a resume never repeats more.
constexpr int64_t kCommitBytes = int64_t{64} << 20;

absl::StatusOr<LayerRecord*> FindLayer(JobRecord& job, const LayerKey& key) {
  for (LayerRecord& layer : job.layers) {
    if (layer.layer_id == key.layer) return &layer;
  }
  return Error(absl::StatusCode::kNotFound, "LAYER_NOT_FOUND",
               absl::StrCat(NameOf(key), " does not exist"));
}

int64_t SizeOf(const LayerRecord& layer) {
  return layer.rows * layer.cols * static_cast<int64_t>(compute::SizeOf(layer.dtype));
}

absl::Status CheckDeclaration(const LayerRecord& layer, const UploadDeclaration& declaration) {
  if (declaration.dtype != layer.dtype) {
    return InvalidField("header.dtype",
                        absl::StrCat("expected ", NameOf(layer.dtype), " as the job declares, got ",
                                     NameOf(declaration.dtype)));
  }
  if (declaration.rows != layer.rows || declaration.cols != layer.cols) {
    return InvalidField(
        declaration.rows != layer.rows ? "header.rows" : "header.cols",
        absl::StrFormat("expected %d x %d as the job declares, got %d x %d", layer.rows, layer.cols,
                        declaration.rows, declaration.cols));
  }
  return absl::OkStatus();
}

}  // namespace

std::string NameOf(const LayerKey& key) {
  return absl::StrCat("tenants/", key.tenant, "/jobs/", key.job, "/layers/", key.layer);
}

WeightUpload::WeightUpload(WeightUploads& uploads, LayerKey key, const LayerRecord& layer,
                           std::unique_ptr<BlobWriter> writer)
    : uploads_(uploads),
      key_(std::move(key)),
      dtype_(layer.dtype),
      cols_(layer.cols),
      size_(SizeOf(layer)),
      writer_(std::move(writer)),
      committed_(writer_->size()) {}

WeightUpload::~WeightUpload() {
  // A failure here only means that the client resends more: nothing was acknowledged.
  if (!done_) Commit().IgnoreError();
  absl::MutexLock lock(&uploads_.mutex_);
  uploads_.held_.erase(key_);
}

absl::Status WeightUpload::Append(int64_t offset, absl::Span<const std::byte> data,
                                  uint32_t crc32c) {
  const int64_t have = writer_->size();
  if (offset != have) {
    return Error(absl::StatusCode::kOutOfRange, "OFFSET_MISMATCH",
                 absl::StrFormat("chunk.offset: expected %d, got %d", have, offset));
  }
  const int64_t count = static_cast<int64_t>(data.size());
  if (count == 0) return InvalidField("chunk.data", "expected at least one element, got 0 bytes");
  if (count > size_ - have) {
    return InvalidField("chunk.data",
                        absl::StrFormat("expected at most %d more bytes of %d in all, got %d",
                                        size_ - have, size_, count));
  }
  const int64_t element = static_cast<int64_t>(compute::SizeOf(dtype_));
  if (count % element != 0) {
    return InvalidField("chunk.data", absl::StrFormat("expected whole elements of %d bytes, got %d "
                                                      "bytes",
                                                      element, count));
  }
  if (const uint32_t actual = compute::Crc32c(data); actual != crc32c) {
    return InvalidField("chunk.crc32c",
                        absl::StrFormat("the data has CRC-32C %08x, got %08x", actual, crc32c),
                        "CRC_MISMATCH");
  }
  if (const int64_t bad = compute::FindNonFinite(dtype_, data.data(), count / element); bad >= 0) {
    const int64_t index = have / element + bad;
    return InvalidField("chunk.data",
                        absl::StrFormat("expected finite values, got NaN or Inf at row %d, column "
                                        "%d of %s",
                                        index / cols_, index % cols_, NameOf(key_)),
                        "NON_FINITE");
  }
  absl::Status appended = writer_->Append(data);
  if (!appended.ok()) return appended;
  if (writer_->size() - committed_ >= kCommitBytes) return Commit().status();
  return absl::OkStatus();
}

absl::StatusOr<UploadProgress> WeightUpload::Commit() {
  const int64_t have = writer_->size();
  if (have != committed_) {
    absl::Status status = writer_->Sync();
    if (status.ok()) status = Failpoint("ingest.upload.commit");
    if (status.ok()) {
      status = uploads_.jobs_.SetUploadCommitted(key_.tenant, key_.job, key_.layer, have);
    }
    if (!status.ok()) return status;
    committed_ = have;
  }
  return UploadProgress{committed_, size_, false};
}

absl::StatusOr<UploadProgress> WeightUpload::Finish(absl::string_view sha256) {
  if (sha256.size() != 32) {
    return InvalidField("finish.sha256", absl::StrCat("expected 32 bytes, got ", sha256.size()));
  }
  if (writer_->size() != size_) {
    return InvalidField(
        "finish",
        absl::StrFormat("expected %d bytes before the end, got %d", size_, writer_->size()),
        "UPLOAD_INCOMPLETE");
  }
  absl::StatusOr<BlobRef> blob = writer_->Commit(sha256);
  const bool start_over = absl::IsDataLoss(blob.status());
  if (!blob.ok() && !start_over) return blob.status();
  done_ = true;
  if (absl::Status status = Failpoint("ingest.upload.finish"); !status.ok()) return status;
  auto updated = uploads_.jobs_.UpdateJob(
      key_.tenant, key_.job, [&](JobRecord& job, std::vector<ArtifactRecord>&) -> absl::Status {
        absl::StatusOr<LayerRecord*> layer = FindLayer(job, key_);
        if (!layer.ok()) return layer.status();
        (*layer)->upload_staging.clear();
        (*layer)->upload_committed = start_over ? 0 : size_;
        if (!start_over) (*layer)->weight = *blob;
        return absl::OkStatus();
      });
  if (!updated.ok()) {
    // Kept unless the job is gone: its record still has the upload as staged, which resumes.
    if (blob.ok() && absl::IsNotFound(updated.status())) {
      uploads_.blobs_.Delete(blob->name).IgnoreError();
    }
    return updated.status();
  }
  if (start_over) {
    uploads_.blobs_.Delete(writer_->name()).IgnoreError();
    return Error(absl::StatusCode::kDataLoss, "DIGEST_MISMATCH",
                 absl::StrCat("finish.sha256: the uploaded bytes of ", NameOf(key_),
                              " have another SHA-256; the upload starts over"));
  }
  if (absl::Status status = Failpoint("ingest.upload.complete"); !status.ok()) return status;
  uploads_.completed_(key_);
  return UploadProgress{size_, size_, true};
}

WeightUploads::WeightUploads(JobStore& jobs, BlobStore& blobs, int64_t max_weight_bytes,
                             int max_streams_per_tenant,
                             std::function<void(const LayerKey&)> completed)
    : jobs_(jobs),
      blobs_(blobs),
      max_weight_bytes_(max_weight_bytes),
      max_streams_per_tenant_(max_streams_per_tenant),
      completed_(std::move(completed)) {}

std::map<std::string, int> WeightUploads::OpenUploads() {
  absl::MutexLock lock(&mutex_);
  std::map<std::string, int> open;
  for (const LayerKey& key : held_) ++open[key.tenant];
  return open;
}

absl::Status WeightUploads::Hold(const LayerKey& key) {
  absl::MutexLock lock(&mutex_);
  const auto open = std::count_if(held_.begin(), held_.end(), [&](const LayerKey& other) {
    return other.tenant == key.tenant;
  });
  if (open >= max_streams_per_tenant_) {
    return QuotaExceeded("TOO_MANY_STREAMS", absl::StrCat("tenants/", key.tenant),
                         absl::StrFormat("%d uploads are open, at most %d may be "
                                         "(limits.max_streams_per_tenant)",
                                         open, max_streams_per_tenant_),
                         absl::Seconds(1));
  }
  if (!held_.insert(key).second) {
    return Error(absl::StatusCode::kAborted, "UPLOAD_IN_PROGRESS",
                 absl::StrCat(NameOf(key), ": another writer is uploading it"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<WeightUpload>> WeightUploads::Open(
    const LayerKey& key, const UploadDeclaration& declaration) {
  if (draining_) {
    return Unavailable("DRAINING", "the server is shutting down", absl::Seconds(5));
  }
  absl::StatusOr<JobRecord> job = jobs_.GetJob(key.tenant, key.job);
  if (!job.ok()) return job.status();
  absl::StatusOr<LayerRecord*> layer = FindLayer(*job, key);
  if (!layer.ok()) return layer.status();
  if (absl::Status status = CheckDeclaration(**layer, declaration); !status.ok()) return status;
  if (!(*layer)->weight.name.empty()) {
    return FailedPrecondition("UPLOAD_COMPLETE", NameOf(key), "its weights are already complete");
  }
  if (HasEnded((*layer)->state)) {
    return FailedPrecondition("LAYER_ENDED", NameOf(key), "the layer has already ended");
  }
  if (SizeOf(**layer) > max_weight_bytes_) {
    return InvalidField("header", absl::StrFormat("expected at most %d bytes (limits."
                                                  "max_weight_bytes), got %d",
                                                  max_weight_bytes_, SizeOf(**layer)));
  }
  if (absl::Status status = Hold(key); !status.ok()) return status;
  auto release = absl::MakeCleanup([&] {
    absl::MutexLock lock(&mutex_);
    held_.erase(key);
  });
  // Read again under the hold: another writer may have moved it on in between.
  job = jobs_.GetJob(key.tenant, key.job);
  if (!job.ok()) return job.status();
  layer = FindLayer(*job, key);
  if (!layer.ok()) return layer.status();
  if (!(*layer)->weight.name.empty()) {
    return FailedPrecondition("UPLOAD_COMPLETE", NameOf(key), "its weights are already complete");
  }
  absl::Status room = blobs_.CheckRoom(key.tenant, SizeOf(**layer) - (*layer)->upload_committed);
  if (!room.ok()) return room;
  absl::StatusOr<std::unique_ptr<BlobWriter>> writer = OpenStaging(key, **layer);
  if (!writer.ok()) return writer.status();
  std::move(release).Cancel();
  return std::unique_ptr<WeightUpload>(new WeightUpload(*this, key, **layer, std::move(*writer)));
}

absl::StatusOr<std::unique_ptr<BlobWriter>> WeightUploads::OpenStaging(const LayerKey& key,
                                                                       const LayerRecord& layer) {
  if (!layer.upload_staging.empty()) {
    return blobs_.ResumeBlob(layer.upload_staging, layer.upload_committed);
  }
  absl::StatusOr<std::unique_ptr<BlobWriter>> writer = blobs_.NewBlob(key.tenant);
  if (!writer.ok()) return writer.status();
  if (absl::Status status = Failpoint("ingest.upload.stage"); !status.ok()) return status;
  auto recorded = jobs_.UpdateJob(
      key.tenant, key.job, [&](JobRecord& job, std::vector<ArtifactRecord>&) -> absl::Status {
        absl::StatusOr<LayerRecord*> found = FindLayer(job, key);
        if (!found.ok()) return found.status();
        (*found)->upload_staging = (*writer)->name();
        (*found)->upload_committed = 0;
        return absl::OkStatus();
      });
  if (!recorded.ok()) {
    if (CertainlyUnchanged(recorded.status())) blobs_.Delete((*writer)->name()).IgnoreError();
    return recorded.status();
  }
  return writer;
}

absl::StatusOr<int64_t> WeightUploads::Discard(const LayerKey& key) {
  if (absl::Status status = Hold(key); !status.ok()) return status;
  const absl::Cleanup release = [&] {
    absl::MutexLock lock(&mutex_);
    held_.erase(key);
  };
  std::string staging;
  auto updated = jobs_.UpdateJob(key.tenant, key.job,
                                 [&](JobRecord& job, std::vector<ArtifactRecord>&) -> absl::Status {
                                   absl::StatusOr<LayerRecord*> layer = FindLayer(job, key);
                                   if (!layer.ok()) return layer.status();
                                   staging = std::exchange((*layer)->upload_staging, "");
                                   if (!staging.empty()) (*layer)->upload_committed = 0;
                                   return absl::OkStatus();
                                 });
  if (!updated.ok()) return updated.status();
  if (staging.empty()) return 0;
  const absl::StatusOr<BlobState> state = blobs_.Describe(staging);
  if (absl::Status status = blobs_.Delete(staging); !status.ok()) return status;
  return state.ok() ? state->size : 0;
}

absl::StatusOr<UploadProgress> WeightUploads::Status(const LayerKey& key) {
  absl::StatusOr<JobRecord> job = jobs_.GetJob(key.tenant, key.job);
  if (!job.ok()) return job.status();
  absl::StatusOr<LayerRecord*> layer = FindLayer(*job, key);
  if (!layer.ok()) return layer.status();
  return UploadProgress{(*layer)->upload_committed, SizeOf(**layer),
                        !(*layer)->weight.name.empty()};
}

}  // namespace quantd::server
