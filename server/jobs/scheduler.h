#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace quantd::server {

// Classes of priority, from 0 (low) over 1 (normal) to 2 (high).
inline constexpr int kNormalPriority = 1;
inline constexpr int kTopPriority = 2;

// One fusion group of a job that is ready to run.
struct WorkItem {
  std::string tenant;
  std::string job_id;
  std::string group;  // key of the fusion group within the job
  double estimated_seconds = 0.0;
  int64_t peak_bytes = 0;
  int priority = kNormalPriority;
};

// What a tenant may use. 0: no limit.
struct TenantQuota {
  int max_running = 0;               // items at once
  double max_seconds_per_day = 0.0;  // device seconds of what starts on one UTC day
  friend bool operator==(const TenantQuota&, const TenantQuota&) = default;
};
enum class QuotaKind { kRunning, kSecondsPerDay };
// As the configuration calls it.
const char* NameOf(QuotaKind kind);
// Why nothing of a tenant starts although slots may be free.
struct QuotaWait {
  QuotaKind kind = QuotaKind::kRunning;
  absl::Time until = absl::InfiniteFuture();  // kSecondsPerDay: 0:00 UTC; else when something ends
  friend bool operator==(const QuotaWait&, const QuotaWait&) = default;
};

// Decides which ready work runs next on which device slot, an item at a time: nothing is ever taken
// off a slot, so a job gives way to others between its fusion groups.
//
// Between tenants: weighted fair share by device seconds, start-time fair queueing (Goyal, Vin,
// Cheng 1996). Every tenant has a virtual time (device seconds used / weight); the tenant with the
// smallest that has something that fits and is within its quota goes first. The virtual time of the
// service is that of the work started last. A tenant that has had nothing to start comes back at
// it, if that is later than its own, so that it neither starves others nor saves up. Slots of
// different memory are shared apart from each other: large work does not wait until small slots
// have been shared out evenly.
//
// Within a tenant: by priority, then first come, first served. A class of priority is worth
// `ageing` of waiting: an item passes those of the next lower class that came less than that
// before it, and no others. So what an item can be passed by is known when it comes.
//
// An item whose peak bytes do not fit a slot is left to a slot where it does, and what stands
// behind it goes first there, unless that would use up a quota that the former needs. Slots of one
// device share its memory: an item that would fit were the others done waits for them, and nothing
// passes it. An item that starts is charged its estimate, and what it really used when it ends.
// With a limit of seconds a day it starts only where the estimate fits what the day has left; what
// runs over its estimate or over midnight counts for the day on which it started.
//
// docs/reliability.md has the bounds on waiting that follow. Pure: no clock, threads or I/O; the
// same calls give the same decisions. Not thread-safe. Copies are independent.
class Scheduler {
 public:
  struct Slot {
    std::string device;
    int64_t memory_bytes = 0;  // of the device
  };
  static constexpr absl::Duration kDefaultAgeing = absl::Hours(1);
  explicit Scheduler(std::vector<Slot> slots, absl::Duration ageing = kDefaultAgeing);

  // Default weight is 1; must be finite and > 0, anything else is ignored.
  void SetWeight(const std::string& tenant, double weight);
  // Holds for what starts from now on.
  void SetQuota(const std::string& tenant, const TenantQuota& quota);
  // Device seconds that the tenant has used on a day (DayOf), from what was stored. Before any
  // work.
  void RestoreUse(const std::string& tenant, int64_t day, double device_seconds);
  // Days since 1970, UTC: what limits a day are counted by.
  static int64_t DayOf(absl::Time now);

  // Whether some slot is large enough: what fits none would wait for ever and is to be refused.
  bool FitsSomeSlot(int64_t peak_bytes) const;

  // Each (tenant, job_id, group) at most once at a time, waiting or running; again is ignored.
  void Enqueue(WorkItem item, absl::Time now);
  // Drops the waiting items of a job; running ones run on.
  void RemoveJob(const std::string& tenant, const std::string& job_id);

  // The next item for a free slot, which is then taken and charged the estimate; nothing if none
  // fits, quotas are used up or the slot is not free.
  std::optional<WorkItem> Next(int slot, absl::Time now);
  // Frees the slot and settles the charge with what was really used.
  void Finish(int slot, double device_seconds);

  struct Running {
    WorkItem item;
    double charged_seconds = 0.0;
    absl::Time since;
    int64_t day = 0;
  };
  // Nothing: the slot is free.
  const std::optional<Running>& RunningOn(int slot) const { return running_[slot]; }

  // What holds up a tenant that has work waiting.
  std::optional<QuotaWait> WaitsForQuota(const std::string& tenant, absl::Time now) const;
  // When the next of these waits ends by itself; InfiniteFuture if none does.
  absl::Time NextRelease(absl::Time now) const;

  struct TenantLoad {
    int waiting = 0;
    int running = 0;
    double device_seconds = 0.0;  // finished ones
    double seconds_today = 0.0;   // finished and charged ones of the day that was looked at last
    absl::Time oldest_waiting = absl::InfiniteFuture();
    std::optional<QuotaWait> quota_wait;
  };
  // Every tenant that has a weight or a quota or ever had work.
  std::map<std::string, TenantLoad> Loads(absl::Time now) const;
  const std::vector<Slot>& slots() const { return slots_; }

  // How often a slot went to another job while the one that it had worked for had more to start.
  struct Preemptions {
    int64_t by_priority = 0;  // to a job of the same tenant
    int64_t by_share = 0;     // to another tenant
  };
  const Preemptions& preemptions() const { return preemptions_; }
  // Jobs (tenant, id) that have items waiting, and how many.
  const std::map<std::pair<std::string, std::string>, int>& waiting_jobs() const {
    return waiting_of_job_;
  }
  // Changes whenever what waits or runs does.
  int64_t version() const { return version_; }

 private:
  struct Waiting {
    WorkItem item;
    absl::Time since;
  };
  // When an item would have come, were it of the top class; then the order of coming.
  using Order = std::pair<absl::Time, int64_t>;
  // A tenant's place among the others on the slots of one size.
  struct Share {
    double virtual_time = 0.0;
    double floor = 0.0;  // virtual time of the service when the tenant last had nothing to start
  };
  struct Tenant {
    double weight = 1.0;
    TenantQuota quota;
    std::vector<Share> shares;  // by size class
    double device_seconds = 0.0;
    int64_t day = 0;
    double used = 0.0;      // of what started on `day` and has ended
    double reserved = 0.0;  // charges of what started on it and runs
    int running = 0;
    std::map<Order, Waiting> waiting;
  };
  using Key = std::tuple<std::string, std::string, std::string>;  // tenant, job, group
  using JobKey = std::pair<std::string, std::string>;

  static Key KeyOf(const WorkItem& item);
  static JobKey JobOf(const WorkItem& item) { return {item.tenant, item.job_id}; }
  Tenant& TenantOf(const std::string& name);
  // Device seconds that the tenant's day has left.
  static double LeftToday(const Tenant& tenant, absl::Time now);
  // Whether the item could ever run: fits a slot and a day.
  bool CanRun(const Tenant& tenant, const WorkItem& item) const;
  // The tenant's next item for a slot of this memory; end() where it has none or a quota is used
  // up.
  std::map<Order, Waiting>::iterator Candidate(Tenant& tenant, int64_t memory_bytes,
                                               absl::Time now) const;
  // Of the slot's device, what its running items leave.
  int64_t FreeBytes(int slot) const;
  void CountPreemption(int slot, const WorkItem& next);

  std::vector<Slot> slots_;
  absl::Duration ageing_;
  std::vector<int> class_of_slot_;     // slots of equal memory: one size class
  std::vector<double> virtual_times_;  // of the service, by size class
  int64_t largest_bytes_ = 0;
  std::vector<std::optional<Running>> running_;  // by slot
  std::vector<std::optional<JobKey>> last_job_;  // by slot
  std::map<std::string, Tenant> tenants_;
  std::set<Key> known_;  // waiting or running
  std::map<JobKey, int> waiting_of_job_;
  int64_t arrivals_ = 0;
  int64_t version_ = 0;
  Preemptions preemptions_;
};

}  // namespace quantd::server
