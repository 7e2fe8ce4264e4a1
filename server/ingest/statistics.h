#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/ingest/activation_stream.h"
#include "server/ingest/moment_cache.h"

namespace quantd::server {

// "tenants/{tenant}/statistics/{statistic}", for messages.
std::string StatisticName(absl::string_view tenant, absl::string_view statistic);

struct StatisticsOptions {
  CommitPolicy commit;
  int max_statistics_per_tenant = 10000;
  int max_streams_per_tenant = 64;
  int64_t max_moment_bytes = int64_t{8} << 30;  // of one sum, in memory
  int64_t max_dimension = int64_t{1} << 20;
  int64_t moment_cache_bytes = int64_t{1} << 30;  // of moments at hand in memory
  int64_t open_sum_bytes = 0;  // of open sums on a device; 0: a quarter of its memory
};

// Durable second moments and the streams that feed them. Thread-safe.
class Statistics {
 public:
  // `sealed` is called after a statistic became usable, from the sealing thread.
  Statistics(JobStore& jobs, BlobStore& blobs, const std::vector<compute::Backend*>& backends,
             Executor& executor, StatisticsOptions options,
             std::function<void(const std::string& tenant, const std::string& statistic)> sealed);
  ~Statistics();

  struct Declaration {
    std::string tenant;
    std::string statistic;
    std::string stream_id;
    compute::DType dtype = compute::DType::kBF16;
    compute::MomentSpec spec;
  };
  // Creates the statistic with its first stream. The stream must be given back with Close.
  // INVALID_ARGUMENT where spec or dtype differ from the stored; FAILED_PRECONDITION once sealed;
  // ABORTED while another writer holds the stream; RESOURCE_EXHAUSTED at a limit.
  absl::StatusOr<std::shared_ptr<ActivationStream>> Open(const Declaration& declaration);
  // Lets the next writer in; call after the stream's Finish is done.
  void Close(const Declaration& declaration);

  // FAILED_PRECONDITION without tokens or while a stream is open. Idempotent.
  absl::StatusOr<StatisticRecord> Seal(const std::string& tenant, const std::string& statistic);
  // The sum of sealed statistics as a new sealed one.
  absl::StatusOr<StatisticRecord> Merge(const std::string& tenant, const std::string& statistic,
                                        const std::vector<std::string>& sources);
  // Stores a moment that was accumulated elsewhere, sealed.
  absl::StatusOr<StatisticRecord> Import(const std::string& tenant, const std::string& statistic,
                                         const compute::SecondMoment& moment);
  // A sealed statistic, nothing of it pending: from memory, else read and verified.
  // FAILED_PRECONDITION unless sealed.
  absl::StatusOr<std::shared_ptr<const compute::SecondMoment>> Load(const std::string& tenant,
                                                                    const std::string& statistic);
  absl::Status Delete(const std::string& tenant, const std::string& statistic);

  struct OpenSums {
    int64_t bytes = 0;      // on the device
    int waiting = 0;        // streams that wait for room there
    int64_t page_outs = 0;  // since the start
  };
  // By the name of the device.
  std::map<std::string, OpenSums> OpenSumsOfDevices() const;
  // Of activations that are open, by tenant.
  std::map<std::string, int> OpenStreams();
  // Refuses new streams from now on: UNAVAILABLE.
  void Drain() { draining_ = true; }
  const StatisticsOptions& options() const { return options_; }

 private:
  using StatisticKey = std::pair<std::string, std::string>;
  struct Live {
    std::map<std::string, std::shared_ptr<ActivationStream>> streams;  // null while opening
    bool closing = false;                                              // being sealed or deleted
  };
  absl::Status Hold(const Declaration& declaration);
  absl::StatusOr<std::shared_ptr<ActivationStream>> OpenHeld(const Declaration& declaration);
  absl::Status CheckRoom(const Declaration& declaration) const;
  // Keeps writers out for the scope of a seal or delete; FAILED_PRECONDITION while streams are
  // open.
  absl::Status BeginClosing(const StatisticKey& key);
  void EndClosing(const StatisticKey& key);
  void TickStreams();
  struct StreamTotal {
    std::shared_ptr<const compute::SecondMoment> moment;
    BlobRef blob;
    bool is_snapshot = false;  // the blob is the stream's; else it is new
  };
  // The sum of an open statistic's streams, nothing of it pending, durable.
  absl::StatusOr<StreamTotal> Total(const StatisticRecord& record);
  // From memory, else read and verified; then also kept in memory.
  absl::StatusOr<std::shared_ptr<const compute::SecondMoment>> ReadMoment(const BlobRef& blob);

  JobStore& jobs_;
  BlobStore& blobs_;
  // Where sums are accumulated.
  struct Device {
    compute::Backend* backend;
    std::shared_ptr<SumMemory> memory;
  };
  std::vector<Device> devices_;
  std::atomic<size_t> next_device_{0};
  Executor& executor_;
  const StatisticsOptions options_;
  const std::function<void(const std::string&, const std::string&)> sealed_;
  std::atomic<bool> draining_{false};
  MomentCache cache_;

  absl::Mutex mutex_;
  std::map<StatisticKey, Live> live_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int> streams_by_tenant_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::CondVar stop_;
  std::thread ticker_;
};

}  // namespace quantd::server
