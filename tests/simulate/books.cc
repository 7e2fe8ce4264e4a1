#include "tests/simulate/books.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace quantd::simulate {
namespace {

constexpr size_t kMostViolations = 20;
constexpr double kRounding = 1e-6;
constexpr double kLeastCharge = 1e-3;  // of the scheduler

double ChargeOf(const server::WorkItem& item) {
  return std::max(item.estimated_seconds, kLeastCharge);
}

std::string NameOf(const server::WorkItem& item) {
  return absl::StrCat(item.tenant, "/", item.job_id, "/", item.group);
}

}  // namespace

Books::Books(const Load& load)
    : load_(load),
      states_(load.work.size(), State::kComing),
      days_(load.work.size(), 0),
      running_(load.slots.size(), -1) {
  for (size_t i = 0; i < load.work.size(); ++i) {
    const server::WorkItem& item = load.work[i].item;
    index_.emplace(std::tuple(item.tenant, item.job_id, item.group), i);
    longest_ = std::max({longest_, ChargeOf(item), load.work[i].seconds});
    tenants_[item.tenant];
  }
  for (const auto& [name, terms] : load.tenants) tenants_[name].terms = terms;
  for (const auto& [name, book] : tenants_) weights_ += book.terms.weight;
  std::map<std::string, int> per_device;
  for (const auto& slot : load.slots) {
    sizes_.insert(slot.memory_bytes);
    largest_ = std::max(largest_, slot.memory_bytes);
    int& most = slots_per_device_[slot.memory_bytes];
    most = std::max(most, ++per_device[slot.device]);
  }
}

template <typename... Parts>
void Books::Violation(absl::Time now, const Parts&... parts) {
  if (violations_.size() >= kMostViolations) return;
  violations_.push_back(absl::StrCat("at ", absl::ToUnixMicros(now) / 1e6, ": ", parts...));
}

size_t Books::IndexOf(const server::WorkItem& item) const {
  return index_.at({item.tenant, item.job_id, item.group});
}

bool Books::CanRun(size_t work) const {
  const server::WorkItem& item = load_.work[work].item;
  const double limit = tenants_.at(item.tenant).terms.quota.max_seconds_per_day;
  return item.peak_bytes <= largest_ && (limit <= 0 || ChargeOf(item) <= limit);
}

// An item of a class waits as long as if it had come so much later in the top class.
Books::Order Books::OrderOf(size_t work) const {
  const Work& w = load_.work[work];
  return {w.ready + (server::kTopPriority - w.item.priority) * load_.ageing, work};
}

void Books::Arrived(size_t work, absl::Time now) {
  if (states_[work] != State::kComing) Violation(now, "came twice");
  states_[work] = State::kWaiting;
  tenants_.at(load_.work[work].item.tenant).waiting.insert(OrderOf(work));
}

void Books::Started(size_t work, int slot, absl::Time now) {
  const server::WorkItem& item = load_.work[work].item;
  TenantBook& book = tenants_.at(item.tenant);
  if (states_[work] != State::kWaiting) {
    Violation(now, NameOf(item), " starts in state ", static_cast<int>(states_[work]));
  }
  if (running_[slot] >= 0) Violation(now, "slot ", slot, " has two items");
  const auto deadline = load_.deadlines.find({item.tenant, item.job_id});
  if (deadline != load_.deadlines.end() && deadline->second <= now) {
    Violation(now, NameOf(item), " starts after its deadline");
  }
  CheckOrder(work, slot, now);
  states_[work] = State::kRunning;
  running_[slot] = static_cast<int>(work);
  book.waiting.erase(OrderOf(work));
  ++book.running;
  days_[work] = absl::ToUnixSeconds(now) / 86'400;
  book.taken[days_[work]] += ChargeOf(item);
  CheckQuotas(work, now);
  CheckMemory(slot, now);
  book.unserved_since.erase(load_.slots[slot].memory_bytes);
}

// Nothing of the same tenant that could run here comes before it.
void Books::CheckOrder(size_t work, int slot, absl::Time now) {
  const server::WorkItem& item = load_.work[work].item;
  for (const Order& order : tenants_.at(item.tenant).waiting) {
    if (!(order < OrderOf(work))) return;
    const server::WorkItem& passed = load_.work[order.second].item;
    if (passed.peak_bytes > load_.slots[slot].memory_bytes || !CanRun(order.second)) continue;
    return Violation(now, NameOf(item), " passes ", NameOf(passed));
  }
}

void Books::CheckQuotas(size_t work, absl::Time now) {
  const TenantBook& book = tenants_.at(load_.work[work].item.tenant);
  const server::TenantQuota& quota = book.terms.quota;
  if (quota.max_running > 0 && book.running > quota.max_running) {
    Violation(now, load_.work[work].item.tenant, " runs ", book.running, " of ", quota.max_running);
  }
  const double taken = book.taken.at(days_[work]);
  if (quota.max_seconds_per_day > 0 && taken > quota.max_seconds_per_day * (1 + kRounding)) {
    Violation(now, load_.work[work].item.tenant, " takes ", taken, " s of ",
              quota.max_seconds_per_day);
  }
}

void Books::CheckMemory(int slot, absl::Time now) {
  int64_t used = 0;
  for (size_t other = 0; other < running_.size(); ++other) {
    if (running_[other] < 0 || load_.slots[other].device != load_.slots[slot].device) continue;
    used += load_.work[running_[other]].item.peak_bytes;
  }
  if (used <= load_.slots[slot].memory_bytes) return;
  Violation(now, load_.slots[slot].device, " holds ", used, " of ", load_.slots[slot].memory_bytes,
            " bytes");
}

void Books::Ended(size_t work, int slot, double seconds, absl::Time now) {
  const server::WorkItem& item = load_.work[work].item;
  if (states_[work] != State::kRunning || running_[slot] != static_cast<int>(work)) {
    Violation(now, NameOf(item), " ends and did not run");
  }
  states_[work] = State::kDone;
  running_[slot] = -1;
  TenantBook& book = tenants_.at(item.tenant);
  --book.running;
  book.taken[days_[work]] += std::max(seconds, kLeastCharge) - ChargeOf(item);
}

void Books::Dropped(size_t work, absl::Time now) {
  if (states_[work] != State::kWaiting) Violation(now, "dropped and did not wait");
  states_[work] = State::kDropped;
  tenants_.at(load_.work[work].item.tenant).waiting.erase(OrderOf(work));
}

void Books::CheckSettled(absl::Time now, const std::set<std::string>& held) {
  CheckHeld(now, held);
  CheckIdleDevices(now, held);
  CheckWaits(now, held);
}

// Whoever is said to be held by a limit has used it up, but for less than its next item needs.
void Books::CheckHeld(absl::Time now, const std::set<std::string>& held) {
  const int64_t day = absl::ToUnixSeconds(now) / 86'400;
  for (const std::string& name : held) {
    TenantBook& book = tenants_.at(name);
    const server::TenantQuota& quota = book.terms.quota;
    const auto first = std::find_if(book.waiting.begin(), book.waiting.end(),
                                    [&](const Order& order) { return CanRun(order.second); });
    if (first == book.waiting.end()) continue;
    if (quota.max_running > 0 && book.running >= quota.max_running) continue;
    const double needed = book.taken[day] + ChargeOf(load_.work[first->second].item);
    if (quota.max_seconds_per_day > 0 && needed > quota.max_seconds_per_day) continue;
    Violation(now, name, " is held and has not used its limits up");
  }
}

bool Books::HasWaitingFor(const TenantBook& book, int64_t memory_bytes) const {
  return std::any_of(book.waiting.begin(), book.waiting.end(), [&](const Order& order) {
    return load_.work[order.second].item.peak_bytes <= memory_bytes && CanRun(order.second);
  });
}

// Beside something that runs a slot may stand idle, where the next item needs its memory, too.
void Books::CheckIdleDevices(absl::Time now, const std::set<std::string>& held) {
  std::set<std::string> busy;
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] >= 0) busy.insert(load_.slots[slot].device);
  }
  for (const auto& slot : load_.slots) {
    if (busy.contains(slot.device)) continue;
    for (const auto& [name, book] : tenants_) {
      // On slots of two sizes limits may be kept for what waits for the larger.
      const bool has_limit = !(book.terms.quota == server::TenantQuota{});
      if (held.contains(name) || (has_limit && sizes_.size() > 1)) continue;
      if (!HasWaitingFor(book, slot.memory_bytes)) continue;
      return Violation(now, slot.device, " stands idle while ", name, " waits");
    }
  }
}

// docs/reliability.md, "Scheduling", derives it.
double Books::BoundOf(const std::string& tenant, int64_t memory_bytes) const {
  const double weight = tenants_.at(tenant).terms.weight;
  const auto others = static_cast<double>(tenants_.size() - 1);
  const double work = longest_ * (2 * (weights_ - weight) / weight + 4 * others + 1);
  return slots_per_device_.at(memory_bytes) * work + longest_;
}

void Books::CheckWaits(absl::Time now, const std::set<std::string>& held) {
  for (auto& [name, book] : tenants_) {
    const bool has_limit = !(book.terms.quota == server::TenantQuota{});
    for (const int64_t size : sizes_) {
      const bool counts =
          !held.contains(name) && !(has_limit && sizes_.size() > 1) && HasWaitingFor(book, size);
      if (!counts) {
        book.unserved_since.erase(size);
        continue;
      }
      const absl::Time since = book.unserved_since.try_emplace(size, now).first->second;
      const double waited = absl::ToDoubleSeconds(now - since);
      const double bound = BoundOf(name, size);
      worst_wait_of_bound_ = std::max(worst_wait_of_bound_, waited / bound);
      if (waited <= bound) continue;
      Violation(now, name, " has waited ", waited, " s, the bound is ", bound);
      book.unserved_since.erase(size);
    }
  }
}

int64_t Books::LeftOver(const std::string& tenant) const {
  const auto found = tenants_.find(tenant);
  return found == tenants_.end() ? 0 : static_cast<int64_t>(found->second.waiting.size());
}

void Books::CheckAllAccountedFor() {
  for (size_t i = 0; i < states_.size(); ++i) {
    const bool ended = states_[i] == State::kDone || states_[i] == State::kDropped;
    const bool impossible = states_[i] == State::kWaiting && !CanRun(i);
    if (ended || impossible) continue;
    Violation(load_.work[i].ready, NameOf(load_.work[i].item), " is lost");
  }
}

}  // namespace quantd::simulate
