#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
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
// every tenant has a virtual time (device seconds used / weight), the ready tenant with the smallest
// goes first, and a tenant that comes back from idling starts at the smallest active virtual time,
// so it neither starves others nor saves up. Within a tenant: first come, first served. An item
// whose peak bytes do not fit a slot is left to a slot where it does.
// Pure: no clock, threads or I/O; the same calls give the same decisions. Not thread-safe.
class Scheduler {
 public:
  struct Slot {
    std::string device;
    int64_t memory_bytes = 0;
  };
  explicit Scheduler(std::vector<Slot> slots);

  // Default weight is 1; must be > 0.
  void SetWeight(const std::string& tenant, double weight);

  // Each (tenant, job_id, group) at most once at a time; again is ignored.
  void Enqueue(WorkItem item, absl::Time now);
  // Drops the waiting items of a job.
  void RemoveJob(const std::string& tenant, const std::string& job_id);

  // The next item for a free slot, which is then taken and charged the estimate; nothing if none
  // fits.
  std::optional<WorkItem> Next(int slot);
  // Frees the slot and settles the charge with what was really used.
  void Finish(int slot, double device_seconds);

  // Items in front of the job's first waiting one plus 1; 0 if none of it waits.
  int QueuePosition(const std::string& tenant, const std::string& job_id) const;
  // Seconds until the job's running and waiting items are done, from the estimates; unset if it has
  // none.
  std::optional<double> EtaSeconds(const std::string& tenant, const std::string& job_id) const;

  struct TenantLoad {
    int waiting = 0;
    int running = 0;
    double device_seconds = 0.0;
    absl::Time oldest_waiting = absl::InfiniteFuture();
  };
  std::map<std::string, TenantLoad> Loads() const;
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  std::vector<Slot> slots_;
};

}  // namespace quantd::server
