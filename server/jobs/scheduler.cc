#include "server/jobs/scheduler.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace quantd::server {
namespace {

// Work costs at least this, so that a flood of items that claim to be free still takes turns.
constexpr double kLeastCharge = 1e-3;

double ChargeFor(double seconds) {
  return std::isfinite(seconds) ? std::max(seconds, kLeastCharge) : kLeastCharge;
}

}  // namespace

Scheduler::Scheduler(std::vector<Slot> slots) : slots_(std::move(slots)), running_(slots_.size()) {}

Scheduler::Key Scheduler::KeyOf(const WorkItem& item) {
  return {item.tenant, item.job_id, item.group};
}

void Scheduler::SetWeight(const std::string& tenant, double weight) {
  if (std::isfinite(weight) && weight > 0) tenants_[tenant].weight = weight;
}

int64_t Scheduler::FreeBytes(int slot) const {
  int64_t free = slots_[slot].memory_bytes;
  for (size_t other = 0; other < slots_.size(); ++other) {
    if (running_[other] && slots_[other].device == slots_[slot].device) {
      free -= running_[other]->item.peak_bytes;
    }
  }
  return free;
}

bool Scheduler::FitsSomeSlot(int64_t peak_bytes) const {
  return std::any_of(slots_.begin(), slots_.end(),
                     [&](const Slot& slot) { return peak_bytes <= slot.memory_bytes; });
}

void Scheduler::Enqueue(WorkItem item, absl::Time now) {
  if (!known_.insert(KeyOf(item)).second) return;
  Tenant& tenant = tenants_[item.tenant];
  if (tenant.waiting.empty()) {
    tenant.floor = virtual_time_;
    tenant.virtual_time = std::max(tenant.virtual_time, tenant.floor);
  }
  tenant.waiting.push_back({.item = std::move(item), .since = now});
}

void Scheduler::RemoveJob(const std::string& tenant, const std::string& job_id) {
  const auto found = tenants_.find(tenant);
  if (found == tenants_.end()) return;
  std::deque<Waiting>& waiting = found->second.waiting;
  std::erase_if(waiting, [&](const Waiting& w) {
    if (w.item.job_id != job_id) return false;
    known_.erase(KeyOf(w.item));
    return true;
  });
}

std::optional<WorkItem> Scheduler::Next(int slot) {
  if (slot < 0 || slot >= static_cast<int>(slots_.size()) || running_[slot]) return std::nullopt;
  const int64_t memory_bytes = slots_[slot].memory_bytes;
  const auto fits = [&](const Waiting& w) { return w.item.peak_bytes <= memory_bytes; };

  Tenant* chosen = nullptr;  // among equals the first by name
  std::deque<Waiting>::iterator place;
  for (auto& [name, tenant] : tenants_) {
    if (chosen != nullptr && tenant.virtual_time >= chosen->virtual_time) continue;
    const auto first = std::find_if(tenant.waiting.begin(), tenant.waiting.end(), fits);
    if (first == tenant.waiting.end()) continue;
    chosen = &tenant;
    place = first;
  }
  if (chosen == nullptr || place->item.peak_bytes > FreeBytes(slot)) return std::nullopt;

  Running started{.item = std::move(place->item)};
  chosen->waiting.erase(place);
  started.charged_seconds = ChargeFor(started.item.estimated_seconds);
  virtual_time_ = std::max(virtual_time_, chosen->virtual_time);
  chosen->virtual_time += started.charged_seconds / chosen->weight;
  ++chosen->running;
  running_[slot] = std::move(started);
  return running_[slot]->item;
}

void Scheduler::Finish(int slot, double device_seconds) {
  if (slot < 0 || slot >= static_cast<int>(slots_.size()) || !running_[slot]) return;
  const Running finished = *std::exchange(running_[slot], std::nullopt);
  known_.erase(KeyOf(finished.item));
  Tenant& tenant = tenants_[finished.item.tenant];
  const double used = ChargeFor(device_seconds);
  // Too high an estimate is given back, but not time from before the tenant came back from idling.
  tenant.virtual_time += (used - finished.charged_seconds) / tenant.weight;
  tenant.virtual_time = std::max(tenant.virtual_time, tenant.floor);
  tenant.device_seconds += used;
  --tenant.running;
}

// An item starts at its tenant's virtual time plus the charges in front of it in the queue; items
// start in the order of these times, among equals by name of the tenant. This is what Next() does
// where everything fits.
Scheduler::Front Scheduler::StartedUpTo(const std::string& name, double start) const {
  Front front;
  for (const auto& [other_name, other] : tenants_) {
    double time = other.virtual_time;
    for (const Waiting& w : other.waiting) {
      if (time > start || (time == start && other_name > name)) break;
      const double charge = ChargeFor(w.item.estimated_seconds);
      ++front.items;
      front.seconds += charge;
      time += charge / other.weight;
    }
  }
  return front;
}

int Scheduler::QueuePosition(const std::string& tenant, const std::string& job_id) const {
  const auto found = tenants_.find(tenant);
  if (found == tenants_.end()) return 0;
  double start = found->second.virtual_time;
  for (const Waiting& w : found->second.waiting) {
    if (w.item.job_id == job_id) return StartedUpTo(tenant, start).items;
    start += ChargeFor(w.item.estimated_seconds) / found->second.weight;
  }
  return 0;
}

std::optional<double> Scheduler::EtaSeconds(const std::string& tenant,
                                            const std::string& job_id) const {
  double running_seconds = 0.0;  // of everyone
  double longest = 0.0;          // item of the job: no number of slots makes it shorter
  for (const std::optional<Running>& r : running_) {
    if (!r) continue;
    running_seconds += r->charged_seconds;
    if (r->item.tenant == tenant && r->item.job_id == job_id) {
      longest = std::max(longest, r->charged_seconds);
    }
  }

  std::optional<double> last_start;
  if (const auto found = tenants_.find(tenant); found != tenants_.end()) {
    double start = found->second.virtual_time;
    for (const Waiting& w : found->second.waiting) {
      const double charge = ChargeFor(w.item.estimated_seconds);
      if (w.item.job_id == job_id) {
        last_start = start;
        longest = std::max(longest, charge);
      }
      start += charge / found->second.weight;
    }
  }
  if (last_start) {
    const double total = running_seconds + StartedUpTo(tenant, *last_start).seconds;
    return std::max(longest, total / static_cast<double>(std::max<size_t>(1, slots_.size())));
  }
  if (longest > 0.0) return longest;
  return std::nullopt;
}

std::map<std::string, Scheduler::TenantLoad> Scheduler::Loads() const {
  std::map<std::string, TenantLoad> loads;
  for (const auto& [name, tenant] : tenants_) {
    TenantLoad& load = loads[name];
    load.waiting = static_cast<int>(tenant.waiting.size());
    load.running = tenant.running;
    load.device_seconds = tenant.device_seconds;
    for (const Waiting& w : tenant.waiting) {
      load.oldest_waiting = std::min(load.oldest_waiting, w.since);
    }
  }
  return loads;
}

}  // namespace quantd::server
