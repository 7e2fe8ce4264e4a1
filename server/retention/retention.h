#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/store/blob_store.h"
#include "server/store/job_store.h"

namespace quantd::server {

// How long things are kept; InfiniteDuration: until somebody deletes them.
struct RetentionPolicy {
  absl::Duration ended_jobs = absl::InfiniteDuration();  // since their end; with their results
  // Sealed ones that no stored job refers to, since they were sealed.
  absl::Duration unused_statistics = absl::InfiniteDuration();
  // Bytes of uploads that are not complete, since the last of them; the job waits on.
  absl::Duration abandoned_uploads = absl::InfiniteDuration();
  // Unsealed statistics that no stored job refers to, since their last durable tokens.
  absl::Duration abandoned_statistics = absl::InfiniteDuration();
};

// What deletes, so that whatever is held of it in memory goes too. Each returns FAILED_PRECONDITION
// or ABORTED for what is in use (it is looked at again later) and NOT_FOUND for what is gone.
struct RetentionActions {
  std::function<absl::Status(const std::string& tenant, const std::string& job)> delete_job;
  std::function<absl::Status(const std::string& tenant, const std::string& statistic)>
      delete_statistic;
  std::function<absl::StatusOr<int64_t>(const std::string& tenant, const std::string& job,
                                        const std::string& layer)>
      discard_upload;
  // Once for everything that went; `kind`: "job", "statistic" or "upload".
  std::function<void(absl::string_view kind, const std::string& tenant, const std::string& name)>
      collected;
};

// Deletes what has been kept long enough. Thread-safe.
class Retention {
 public:
  Retention(JobStore& jobs, BlobStore& blobs, RetentionPolicy policy, RetentionActions actions);
  // Ends the thread that Start made.
  ~Retention();

  // One pass, as of `now`. The first error that is not about one thing's use ends it.
  absl::Status Sweep(absl::Time now);
  // Sweeps every `interval` on a thread of its own, by `clock`; errors go to `failed`.
  void Start(absl::Duration interval, std::function<absl::Time()> clock,
             std::function<void(const absl::Status&)> failed);

 private:
  absl::Status SweepJobs(absl::Time now);
  absl::Status SweepUploads(absl::Time now);
  absl::Status SweepStatistics(absl::Time now);
  absl::StatusOr<absl::Time> LastWritten(const StatisticRecord& statistic) const;

  JobStore& jobs_;
  BlobStore& blobs_;
  const RetentionPolicy policy_;
  const RetentionActions actions_;
  absl::Mutex mutex_;
  absl::CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace quantd::server
