#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/time/time.h"

namespace quantd::server {

// One fusion group of a job that is ready to run.
struct WorkItem {
  std::string tenant;
  std::string job_id;
  std::string group;  // key of the fusion group within the job
  double estimated_seconds = 0.0;
  int64_t peak_bytes = 0;
};

// Decides which ready work runs next on which device slot. Weighted fair share by device seconds:
// start-time fair queueing (Goyal, Vin, Cheng 1996). Every tenant has a virtual time (device
// seconds used / weight); the tenant with the smallest that has something that fits goes first. The
// virtual time of the service is that of the work started last. A tenant whose queue has run empty
// comes back at it, if that is later than its own, so that it neither starves others nor saves up.
// Within a tenant: first come, first served. An item whose peak bytes do not fit a slot is left to
// a slot where it does, and what stands behind it goes first there. Slots of one device share its
// memory: an item that would fit were the others done waits for them, and nothing passes it. Pure:
// no clock, threads or I/O; the same calls give the same decisions. Not thread-safe.
class Scheduler {
 public:
  struct Slot {
    std::string device;
    int64_t memory_bytes = 0;  // of the device
  };
  explicit Scheduler(std::vector<Slot> slots);

  // Default weight is 1; must be finite and > 0, anything else is ignored.
  void SetWeight(const std::string& tenant, double weight);

  // Whether some slot is large enough: what fits none would wait for ever and is to be refused.
  bool FitsSomeSlot(int64_t peak_bytes) const;

  // Each (tenant, job_id, group) at most once at a time, waiting or running; again is ignored.
  void Enqueue(WorkItem item, absl::Time now);
  // Drops the waiting items of a job; running ones run on.
  void RemoveJob(const std::string& tenant, const std::string& job_id);

  // The next item for a free slot, which is then taken and charged the estimate; nothing if none
  // fits or the slot is not free.
  std::optional<WorkItem> Next(int slot);
  // Frees the slot and settles the charge with what was really used.
  void Finish(int slot, double device_seconds);

  // Items in front of the job's first waiting one plus 1, in the order in which slots that fit all
  // would start them; 0 if none of it waits. Linear in the number of waiting items.
  int QueuePosition(const std::string& tenant, const std::string& job_id) const;
  // Seconds until the job's running and waiting items are done; unset if it has none. From the
  // estimates alone: running items count in full (there is no clock), work in front is spread
  // evenly over the slots, and nothing else arrives.
  std::optional<double> EtaSeconds(const std::string& tenant, const std::string& job_id) const;

  struct TenantLoad {
    int waiting = 0;
    int running = 0;
    double device_seconds = 0.0;  // finished ones
    absl::Time oldest_waiting = absl::InfiniteFuture();
  };
  // Every tenant that has a weight or ever had work.
  std::map<std::string, TenantLoad> Loads() const;
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  struct Waiting {
    WorkItem item;
    absl::Time since;
  };
  struct Tenant {
    double weight = 1.0;
    double virtual_time = 0.0;
    double floor = 0.0;  // virtual time of the service when the tenant last came back
    double device_seconds = 0.0;
    int running = 0;
    std::deque<Waiting> waiting;
  };
  struct Running {
    WorkItem item;
    double charged_seconds = 0.0;
  };
  using Key = std::tuple<std::string, std::string, std::string>;  // tenant, job, group

  static Key KeyOf(const WorkItem& item);
  // Of the slot's device, what its running items leave.
  int64_t FreeBytes(int slot) const;
  // The waiting items that start at or before virtual time `start` of tenant `name`.
  struct Front {
    int items = 0;
    double seconds = 0.0;
  };
  Front StartedUpTo(const std::string& name, double start) const;

  std::vector<Slot> slots_;
  std::vector<std::optional<Running>> running_;  // by slot
  std::map<std::string, Tenant> tenants_;
  std::set<Key> known_;  // waiting or running
  double virtual_time_ = 0.0;
};

}  // namespace quantd::server
