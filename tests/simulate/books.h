#pragma once

#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "tests/simulate/load.h"

namespace quantd::simulate {

// What waits and runs, kept apart from the scheduler, and the rules that it must obey. Works are
// named by their index in Load::work.
class Books {
 public:
  explicit Books(const Load& load);

  void Arrived(size_t work, absl::Time now);
  // Checks every rule about a start, then notes it.
  void Started(size_t work, int slot, absl::Time now);
  void Ended(size_t work, int slot, double seconds, absl::Time now);
  void Dropped(size_t work, absl::Time now);
  // Once all that can start at `now` has: nothing stands idle, nobody has waited for too long.
  // `held`: tenants that a limit holds.
  void CheckSettled(absl::Time now, const std::set<std::string>& held);
  // At the end: nothing is lost.
  void CheckAllAccountedFor();

  size_t IndexOf(const server::WorkItem& item) const;
  const std::vector<std::string>& violations() const { return violations_; }
  double worst_wait_of_bound() const { return worst_wait_of_bound_; }
  // Whether it fits a slot and a day.
  bool CanRun(size_t work) const;
  int64_t LeftOver(const std::string& tenant) const;

 private:
  enum class State { kComing, kWaiting, kRunning, kDone, kDropped };
  using Order = std::pair<absl::Time, size_t>;
  struct TenantBook {
    Tenant terms;
    std::set<Order> waiting;
    int running = 0;
    std::map<int64_t, double> taken;               // by day: used, and estimates of what runs
    std::map<int64_t, absl::Time> unserved_since;  // by memory of a slot
  };

  template <typename... Parts>
  void Violation(absl::Time now, const Parts&... parts);
  Order OrderOf(size_t work) const;
  void CheckOrder(size_t work, int slot, absl::Time now);
  void CheckQuotas(size_t work, absl::Time now);
  void CheckMemory(int slot, absl::Time now);
  void CheckHeld(absl::Time now, const std::set<std::string>& held);
  void CheckIdleDevices(absl::Time now, const std::set<std::string>& held);
  void CheckWaits(absl::Time now, const std::set<std::string>& held);
  bool HasWaitingFor(const TenantBook& book, int64_t memory_bytes) const;
  double BoundOf(const std::string& tenant, int64_t memory_bytes) const;

  const Load& load_;
  std::vector<State> states_;
  std::vector<int64_t> days_;  // on which works started
  std::map<std::tuple<std::string, std::string, std::string>, size_t> index_;
  std::map<std::string, TenantBook> tenants_;
  std::vector<int> running_;                 // work on each slot, -1: none
  std::set<int64_t> sizes_;                  // memory of slots
  std::map<int64_t, int> slots_per_device_;  // by memory, the most
  int64_t largest_ = 0;
  double longest_ = 0.0;  // estimate or duration
  double weights_ = 0.0;
  double worst_wait_of_bound_ = 0.0;
  std::vector<std::string> violations_;
};

}  // namespace quantd::simulate
