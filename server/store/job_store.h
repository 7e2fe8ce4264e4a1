#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/store/records.h"

namespace quantd::server {

struct JobKey {
  std::string tenant;
  std::string job_id;
};

template <typename T>
struct Page {
  std::vector<T> items;
  std::string next_token;  // empty: no more
};

// Whether a change that failed with `error` certainly did not happen. Otherwise (a failed sync,
// say) the next start may find it done: the blobs that it would refer to must be kept; what nothing
// refers to is collected at the start.
inline bool CertainlyUnchanged(const absl::Status& error) {
  return !error.ok() && !absl::IsInternal(error) && !absl::IsUnknown(error);
}

// Jobs, layers, statistics and artifacts. Every method is one transaction that is durable when it
// returns OK. Errors: NOT_FOUND and ALREADY_EXISTS name the resource; RESOURCE_EXHAUSTED for a full
// disk; INVALID_ARGUMENT for a page token that this store did not make; DATA_LOSS for a record that
// cannot be read; INTERNAL where the outcome is unknown (CertainlyUnchanged). Thread-safe.
class JobStore {
 public:
  virtual ~JobStore() = default;

  // ALREADY_EXISTS for the id; RESOURCE_EXHAUSTED at `max_jobs` stored jobs of the tenant;
  // FAILED_PRECONDITION where a layer with `weight_of` has a weight that no stored layer has (any
  // more): so a blob is shared only while something keeps it.
  virtual absl::Status InsertJob(const JobRecord& job, int max_jobs) = 0;
  virtual absl::StatusOr<JobRecord> GetJob(absl::string_view tenant, absl::string_view job) = 0;
  // NOT_FOUND for an unknown request_id.
  virtual absl::StatusOr<JobRecord> FindJobByRequest(absl::string_view tenant,
                                                     absl::string_view request_id) = 0;
  virtual absl::StatusOr<Page<JobRecord>> ListJobs(absl::string_view tenant, int page_size,
                                                   absl::string_view page_token) = 0;
  // Every tenant's jobs that have not ended, with layers, oldest first: what a restart resumes.
  virtual absl::StatusOr<std::vector<JobRecord>> UnfinishedJobs() = 0;
  // Reads, lets `change` edit and writes back, in one transaction. `change` may edit state,
  // end_time, finished_layers and the layers' fields, not keys; an error from it rolls back and is
  // returned. It must not call the store. `artifacts` that `change` fills are inserted with it, and
  // `use` is added to what the tenant has used.
  virtual absl::StatusOr<JobRecord> UpdateJob(
      absl::string_view tenant, absl::string_view job,
      absl::FunctionRef<absl::Status(JobRecord&, std::vector<ArtifactRecord>&)> change,
      const DeviceUse& use) = 0;
  absl::StatusOr<JobRecord> UpdateJob(
      absl::string_view tenant, absl::string_view job,
      absl::FunctionRef<absl::Status(JobRecord&, std::vector<ArtifactRecord>&)> change) {
    return UpdateJob(tenant, job, change, DeviceUse{});
  }
  // Adds to what the tenant has used, for work that leaves nothing else behind.
  virtual absl::Status AddDeviceUse(absl::string_view tenant, const DeviceUse& use) = 0;
  // What every tenant has used on that day.
  virtual absl::StatusOr<std::map<std::string, double>> DeviceSecondsOf(int64_t day) = 0;
  // Moves one upload forward without touching the rest of the job.
  virtual absl::Status SetUploadCommitted(absl::string_view tenant, absl::string_view job,
                                          absl::string_view layer, int64_t committed) = 0;
  // Returns the names of the blobs that nothing refers to any more; layers may share a weight.
  virtual absl::StatusOr<std::vector<std::string>> DeleteJob(absl::string_view tenant,
                                                             absl::string_view job) = 0;

  virtual absl::StatusOr<ArtifactRecord> GetArtifact(absl::string_view tenant,
                                                     absl::string_view job,
                                                     absl::string_view artifact) = 0;
  virtual absl::StatusOr<Page<ArtifactRecord>> ListArtifacts(absl::string_view tenant,
                                                             absl::string_view job, int page_size,
                                                             absl::string_view page_token) = 0;

  // As InsertJob, with `max_statistics`.
  virtual absl::Status InsertStatistic(const StatisticRecord& statistic, int max_statistics) = 0;
  virtual absl::StatusOr<StatisticRecord> GetStatistic(absl::string_view tenant,
                                                       absl::string_view statistic) = 0;
  virtual absl::StatusOr<Page<StatisticRecord>> ListStatistics(absl::string_view tenant,
                                                               int page_size,
                                                               absl::string_view page_token) = 0;
  // Inserts or replaces one stream: the snapshot and its durable_seq move together.
  virtual absl::Status CommitStream(absl::string_view tenant, absl::string_view statistic,
                                    const StatisticStreamRecord& stream) = 0;
  // Marks sealed with the merged moment; the streams' snapshots are dropped from the record.
  virtual absl::Status SealStatistic(absl::string_view tenant, absl::string_view statistic,
                                     int64_t tokens, absl::string_view digest,
                                     const BlobRef& moment) = 0;
  // As DeleteJob. FAILED_PRECONDITION while a job that has not ended uses it.
  virtual absl::StatusOr<std::vector<std::string>> DeleteStatistic(absl::string_view tenant,
                                                                   absl::string_view statistic) = 0;

  // What retention looks through, oldest first, at most `limit`: ids of jobs that ended before
  // then; statistics that were created before then and that no stored job refers to.
  virtual absl::StatusOr<std::vector<JobKey>> JobsEndedBefore(absl::Time time, int limit) = 0;
  virtual absl::StatusOr<std::vector<StatisticRecord>> UnusedStatistics(absl::Time created_before,
                                                                        int limit) = 0;

  // Names of all blobs and staging files that any record refers to: the rest is garbage.
  virtual absl::StatusOr<std::vector<std::string>> ReferencedBlobs() = 0;
};

}  // namespace quantd::server
