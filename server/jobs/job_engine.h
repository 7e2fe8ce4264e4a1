#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "compute/backend/backend.h"
#include "compute/pipeline/pipeline.h"
#include "compute/stages/report.h"
#include "server/jobs/forecast.h"
#include "server/jobs/job_rules.h"
#include "server/jobs/scheduler.h"
#include "server/store/blob_store.h"
#include "server/store/job_store.h"

namespace quantd::server {

// When a fusion group could have run and what it took.
struct WorkTimes {
  absl::Time ready;
  absl::Time started;
  double device_seconds = 0.0;
};

// What the engine tells metrics and logs. Called from slot threads; `expired` from the clock's.
struct JobEvents {
  std::function<void(const WorkItem&, absl::Duration queue_wait)> started;
  std::function<void(const WorkItem&, const compute::ErrorReport&)> succeeded;  // each layer
  // CANCELLED and DEADLINE_EXCEEDED too.
  std::function<void(const WorkItem&, const absl::Status&)> failed;
  std::function<void(const WorkItem&, const WorkTimes&)> ended;  // whatever came of it
  std::function<void(const std::string& tenant, const std::string& job)> expired;
};

// A running layer's position.
struct LayerProgress {
  std::string stage;
  double fraction = 0.0;
};
// A job's place among what waits for the devices.
struct QueueView {
  int position = 0;                   // 0: nothing waits
  std::optional<double> eta_seconds;  // of what waits and runs
  std::optional<QuotaWait> quota_wait;
};
struct JobView {
  JobRecord job;
  std::map<std::string, LayerProgress> progress;  // of running layers, by layer_id
  QueueView queue;
};

struct TenantShare {
  double weight = 1.0;
  TenantQuota quota;
};

// Runs jobs: finds layers whose inputs are there, asks the scheduler which goes next, runs them on
// the devices' slots and commits results and state together. The store is the truth; what is held
// here can be rebuilt from it, which is what Recover does. Thread-safe.
class JobEngine {
 public:
  struct Options {
    int cpu_slots = 1;   // layers at once on the CPU
    int cuda_slots = 8;  // and on each GPU
    JobLimits limits;
    int max_jobs_per_tenant = 1000;
    std::map<std::string, TenantShare> tenants;  // others have the default
    absl::Duration priority_ageing = Scheduler::kDefaultAgeing;
  };
  using MomentLoader = std::function<absl::StatusOr<std::shared_ptr<const compute::SecondMoment>>(
      const std::string& tenant, const std::string& statistic)>;

  JobEngine(JobStore& jobs, BlobStore& blobs, std::vector<compute::Backend*> backends,
            Options options, MomentLoader load_moment, JobEvents events);
  // Stops like Drain with no time to finish.
  ~JobEngine();

  // Takes up every unfinished job of the store and starts the slots. Call once.
  absl::Status Start();

  // Checks, fills in what follows (recipes, weights of other layers) and estimates; stores nothing.
  absl::StatusOr<JobEstimate> Validate(JobRecord& job) const;
  // Creates a checked job. With a request_id that was used before: that job.
  absl::StatusOr<JobRecord> Create(JobRecord job);
  absl::StatusOr<JobView> Get(const std::string& tenant, const std::string& job);
  QueueView Queue(const std::string& tenant, const std::string& job);
  absl::StatusOr<JobRecord> Cancel(const std::string& tenant, const std::string& job);
  absl::Status Delete(const std::string& tenant, const std::string& job);

  // Something that layers wait for has come.
  void WeightCompleted(const std::string& tenant, const std::string& job);
  void StatisticSealed(const std::string& tenant, const std::string& statistic);

  // Weights and quotas from now on; tenants that are not named get the default.
  void SetTenants(const std::map<std::string, TenantShare>& tenants);

  // `changed` is called after every change of the job, and at most once a second where its place in
  // the queue may have changed; from any thread, and it must not block or call back. Unsubscribe
  // returns once no call is under way.
  int64_t Subscribe(const std::string& tenant, const std::string& job,
                    std::function<void()> changed);
  void Unsubscribe(int64_t subscription);

  // Starts nothing new and waits for running layers until `deadline`; what then still runs is
  // stopped and runs again after a restart.
  void Drain(absl::Time deadline);

  std::map<std::string, Scheduler::TenantLoad> Loads() const;
  Scheduler::Preemptions Preemptions() const;
  std::vector<int> RunningBySlot() const;  // 0 or 1 a slot
  const std::vector<Scheduler::Slot>& slots() const { return slots_; }

 private:
  using JobKey = std::pair<std::string, std::string>;
  enum class Stop { kNone, kCancelled, kExpired, kDrained };
  struct RunningGroup {
    compute::CancelFlag cancel;
    std::atomic<Stop> stop{Stop::kNone};  // why `cancel` was set
    std::vector<std::string> layer_ids;
    LayerProgress progress;
  };
  struct LiveJob {
    std::optional<absl::Time> deadline;
    std::map<std::string, absl::Time> queued;  // group key -> since when
    std::vector<std::string> waiting_for;      // statistics of waiting groups
    std::map<std::string, std::shared_ptr<RunningGroup>> running;
  };

  void RefreshLocked(const JobKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Looks again at the jobs whose change the store refused (a full disk): layers that neither wait
  // in the scheduler nor run here wait for their turn again.
  void SettleLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckStatistics(const JobRecord& job) const;
  absl::StatusOr<bool> IsReady(const JobRecord& job, const LayerGroup& group) const;
  absl::StatusOr<std::set<std::string>> ReadyGroups(const JobKey& key) const;
  void NotifyLocked(const JobKey& key) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void NotifyWaitingLocked() ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  QueueView QueueLocked(const JobKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetTenantsLocked(const std::map<std::string, TenantShare>& tenants)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunSlot(int slot);
  // What happens by the clock: deadlines, limits that start anew, places in the queue, and changes
  // that the store refused.
  void RunClock();
  // Ends every layer that has not ended as `end_layer` says; running ones are stopped.
  absl::StatusOr<JobRecord> EndLocked(const JobKey& key, Stop stop,
                                      absl::FunctionRef<void(LayerRecord&)> end_layer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ExpireLocked(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<RunningGroup> BeginLocked(const WorkItem& item)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishLocked(const WorkItem& item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status RunGroup(compute::Backend& backend, const WorkItem& item,
                        const std::shared_ptr<RunningGroup>& running, DeviceUse& use);
  // Tells the store and whoever listens what came of a group. False where the store refused.
  bool Conclude(const WorkItem& item, const RunningGroup& running, absl::Status status,
                const DeviceUse& use);
  absl::StatusOr<std::vector<compute::Tensor>> LoadWeights(const JobRecord& job,
                                                           const LayerGroup& group) const;
  // Statistics of a group and what they are to it.
  struct LoadedStatistics {
    std::vector<std::shared_ptr<const compute::SecondMoment>> moments;
    compute::Calibration calibration;
  };
  absl::StatusOr<LoadedStatistics> LoadStatistics(const JobRecord& job,
                                                  const LayerGroup& group) const;
  absl::Status CommitFailure(const WorkItem& item, const absl::Status& failure,
                             const DeviceUse& use);

  JobStore& jobs_;
  BlobStore& blobs_;
  const std::vector<compute::Backend*> backends_;
  const Options options_;
  const MomentLoader load_moment_;
  const JobEvents events_;
  const std::vector<compute::Backend*> slot_backends_;
  const std::vector<Scheduler::Slot> slots_;

  mutable absl::Mutex mutex_;
  absl::CondVar wake_;
  Scheduler scheduler_ ABSL_GUARDED_BY(mutex_);
  std::map<JobKey, LiveJob> live_ ABSL_GUARDED_BY(mutex_);
  std::vector<int> busy_ ABSL_GUARDED_BY(mutex_);
  std::set<JobKey> unsettled_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, TenantShare> tenants_ ABSL_GUARDED_BY(mutex_);
  absl::CondVar clock_wake_;
  int64_t notified_version_ ABSL_GUARDED_BY(mutex_) = 0;
  // Of the scheduler's version `forecast_version_`.
  Forecast forecast_ ABSL_GUARDED_BY(mutex_);
  int64_t forecast_version_ ABSL_GUARDED_BY(mutex_) = -1;
  absl::Time forecast_time_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();

  struct Subscription {
    JobKey key;
    std::function<void()> changed;
  };
  mutable absl::Mutex subscriptions_mutex_ ABSL_ACQUIRED_AFTER(mutex_);
  std::map<int64_t, Subscription> subscriptions_ ABSL_GUARDED_BY(subscriptions_mutex_);
  int64_t next_subscription_ ABSL_GUARDED_BY(subscriptions_mutex_) = 1;

  std::vector<std::thread> threads_;
};

}  // namespace quantd::server
