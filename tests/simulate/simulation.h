#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/simulate/load.h"

namespace quantd::simulate {

struct TenantResult {
  double weight = 1.0;
  int64_t done = 0;
  int64_t expired = 0;    // dropped or stopped by a deadline
  int64_t left_over = 0;  // fits no slot or no day
  double device_seconds = 0.0;
  std::vector<double> waits;   // seconds from ready to start, of each that started
  double quota_seconds = 0.0;  // in which it had work waiting and was held by a limit
};

struct Result {
  std::map<std::string, TenantResult> tenants;
  double seconds = 0.0;       // from the first arrival to the last end
  double busy_seconds = 0.0;  // of all slots
  int slots = 0;
  server::Scheduler::Preemptions preemptions;
  // Longest time for which a tenant had something to start and was not served, relative to the
  // bound of docs/reliability.md.
  double worst_wait_of_bound = 0.0;
  // Of a saturated load: how far a tenant is off its share of the device seconds until then.
  double worst_share_error = 0.0;
  std::vector<std::string> violations;  // the first ones
};

// Runs the load through the scheduler with a clock of its own, and keeps books beside it: every
// promise of docs/reliability.md that it sees broken becomes a line of `violations`. `seed` decides
// in which order free slots ask for work. Deterministic.
Result Simulate(const Load& load, uint64_t seed);

}  // namespace quantd::simulate
