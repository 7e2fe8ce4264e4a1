#include "server/jobs/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace quantd::server {
namespace {

// Work costs at least this, so that a flood of items that claim to be free still takes turns.
constexpr double kLeastCharge = 1e-3;
constexpr double kNoLimit = std::numeric_limits<double>::infinity();
// A day's sum and an estimate that are equal on paper may differ by the rounding of the sum.
constexpr double kRounding = 1e-9;

double ChargeFor(double seconds) {
  return std::isfinite(seconds) ? std::max(seconds, kLeastCharge) : kLeastCharge;
}

absl::Time StartOfDay(int64_t day) { return absl::UnixEpoch() + day * absl::Hours(24); }

}  // namespace

const char* NameOf(QuotaKind kind) {
  return kind == QuotaKind::kRunning ? "max_running_layers" : "max_device_seconds_per_day";
}

Scheduler::Scheduler(std::vector<Slot> slots, absl::Duration ageing)
    : slots_(std::move(slots)), ageing_(ageing), running_(slots_.size()), last_job_(slots_.size()) {
  std::map<int64_t, int> classes;
  for (const Slot& slot : slots_) {
    const int next = static_cast<int>(classes.size());
    class_of_slot_.push_back(classes.try_emplace(slot.memory_bytes, next).first->second);
    largest_bytes_ = std::max(largest_bytes_, slot.memory_bytes);
  }
  virtual_times_.resize(classes.size());
}

Scheduler::Key Scheduler::KeyOf(const WorkItem& item) {
  return {item.tenant, item.job_id, item.group};
}

int64_t Scheduler::DayOf(absl::Time now) {
  return absl::Floor(now - absl::UnixEpoch(), absl::Hours(24)) / absl::Hours(24);
}

Scheduler::Tenant& Scheduler::TenantOf(const std::string& name) {
  const auto [found, is_new] = tenants_.try_emplace(name);
  if (is_new) {
    for (const double now : virtual_times_) found->second.shares.push_back({now, now});
  }
  return found->second;
}

void Scheduler::SetWeight(const std::string& tenant, double weight) {
  if (std::isfinite(weight) && weight > 0) TenantOf(tenant).weight = weight;
  ++version_;
}

void Scheduler::SetQuota(const std::string& tenant, const TenantQuota& quota) {
  TenantOf(tenant).quota = quota;
  ++version_;
}

void Scheduler::RestoreUse(const std::string& tenant, int64_t day, double device_seconds) {
  Tenant& restored = TenantOf(tenant);
  restored.day = day;
  restored.used = device_seconds;
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

bool Scheduler::FitsSomeSlot(int64_t peak_bytes) const { return peak_bytes <= largest_bytes_; }

void Scheduler::Enqueue(WorkItem item, absl::Time now) {
  if (!known_.insert(KeyOf(item)).second) return;
  const int steps = kTopPriority - std::clamp(item.priority, 0, kTopPriority);
  ++waiting_of_job_[JobOf(item)];
  ++version_;
  Tenant& tenant = TenantOf(item.tenant);
  const Order order{now + steps * ageing_, arrivals_++};
  tenant.waiting.emplace(order, Waiting{std::move(item), now});
}

void Scheduler::RemoveJob(const std::string& tenant, const std::string& job_id) {
  const auto found = tenants_.find(tenant);
  if (found == tenants_.end()) return;
  std::erase_if(found->second.waiting, [&](const auto& entry) {
    const WorkItem& item = entry.second.item;
    if (item.job_id != job_id) return false;
    known_.erase(KeyOf(item));
    return true;
  });
  waiting_of_job_.erase({tenant, job_id});
  ++version_;
}

double Scheduler::LeftToday(const Tenant& tenant, absl::Time now) {
  if (tenant.quota.max_seconds_per_day <= 0) return kNoLimit;
  // A clock that was set back does not give the day another time.
  const bool same_day = DayOf(now) <= tenant.day;
  const double taken = same_day ? tenant.used + tenant.reserved : 0.0;
  return tenant.quota.max_seconds_per_day * (1 + kRounding) - taken;
}

bool Scheduler::CanRun(const Tenant& tenant, const WorkItem& item) const {
  const double limit = tenant.quota.max_seconds_per_day;
  return FitsSomeSlot(item.peak_bytes) &&
         (limit <= 0 || ChargeFor(item.estimated_seconds) <= limit * (1 + kRounding));
}

// What is passed over because it needs a larger slot keeps its part of the quotas: otherwise the
// tenant's own small work could use them up for ever.
std::map<Scheduler::Order, Scheduler::Waiting>::iterator Scheduler::Candidate(
    Tenant& tenant, int64_t memory_bytes, absl::Time now) const {
  int places = std::numeric_limits<int>::max();
  if (tenant.quota.max_running > 0) places = tenant.quota.max_running - tenant.running;
  double seconds = LeftToday(tenant, now);
  for (auto it = tenant.waiting.begin(); it != tenant.waiting.end(); ++it) {
    if (!CanRun(tenant, it->second.item)) continue;
    seconds -= ChargeFor(it->second.item.estimated_seconds);
    if (places < 1 || seconds < 0) break;
    if (it->second.item.peak_bytes <= memory_bytes) return it;
    if (places != std::numeric_limits<int>::max()) --places;
  }
  return tenant.waiting.end();
}

std::optional<WorkItem> Scheduler::Next(int slot, absl::Time now) {
  if (slot < 0 || slot >= static_cast<int>(slots_.size()) || running_[slot]) return std::nullopt;
  const int size_class = class_of_slot_[slot];
  Tenant* chosen = nullptr;  // among equals the first by name
  std::map<Order, Waiting>::iterator place;
  std::vector<Share*> absent;
  for (auto& [name, tenant] : tenants_) {
    Share& share = tenant.shares[size_class];
    const auto candidate = Candidate(tenant, slots_[slot].memory_bytes, now);
    if (candidate == tenant.waiting.end()) {
      absent.push_back(&share);
    } else if (chosen == nullptr || share.virtual_time < chosen->shares[size_class].virtual_time) {
      chosen = &tenant;
      place = candidate;
    }
  }
  if (chosen == nullptr || place->second.item.peak_bytes > FreeBytes(slot)) return std::nullopt;

  Running started{.item = std::move(place->second.item), .since = now};
  chosen->waiting.erase(place);
  started.charged_seconds = ChargeFor(started.item.estimated_seconds);
  Share& share = chosen->shares[size_class];
  double& service = virtual_times_[size_class];
  service = std::max(service, share.virtual_time);
  for (Share* other : absent) {
    other->floor = service;
    other->virtual_time = std::max(other->virtual_time, service);
  }
  share.virtual_time += started.charged_seconds / chosen->weight;
  if (DayOf(now) > chosen->day) {
    chosen->day = DayOf(now);
    chosen->used = chosen->reserved = 0.0;
  }
  started.day = chosen->day;
  chosen->reserved += started.charged_seconds;
  ++chosen->running;
  CountPreemption(slot, started.item);
  ++version_;
  running_[slot] = std::move(started);
  return running_[slot]->item;
}

void Scheduler::CountPreemption(int slot, const WorkItem& next) {
  const auto waiting = waiting_of_job_.find(JobOf(next));
  if (waiting != waiting_of_job_.end() && --waiting->second == 0) waiting_of_job_.erase(waiting);
  std::optional<JobKey>& last = last_job_[slot];
  if (last && *last != JobOf(next) && waiting_of_job_.contains(*last)) {
    ++(last->first == next.tenant ? preemptions_.by_priority : preemptions_.by_share);
  }
  last = JobOf(next);
}

void Scheduler::Finish(int slot, double device_seconds) {
  if (slot < 0 || slot >= static_cast<int>(slots_.size()) || !running_[slot]) return;
  const Running finished = *std::exchange(running_[slot], std::nullopt);
  known_.erase(KeyOf(finished.item));
  Tenant& tenant = TenantOf(finished.item.tenant);
  Share& share = tenant.shares[class_of_slot_[slot]];
  const double used = ChargeFor(device_seconds);
  // Too high an estimate is given back, but not time from before the tenant came back from idling.
  share.virtual_time += (used - finished.charged_seconds) / tenant.weight;
  share.virtual_time = std::max(share.virtual_time, share.floor);
  tenant.device_seconds += used;
  if (tenant.day == finished.day) {
    tenant.reserved -= finished.charged_seconds;
    tenant.used += used;
  }
  if (--tenant.running == 0) tenant.reserved = 0.0;  // rid of rounding
  ++version_;
}

std::optional<QuotaWait> Scheduler::WaitsForQuota(const std::string& name, absl::Time now) const {
  const auto found = tenants_.find(name);
  if (found == tenants_.end() || found->second.waiting.empty()) return std::nullopt;
  const Tenant& tenant = found->second;
  const auto first =
      std::find_if(tenant.waiting.begin(), tenant.waiting.end(),
                   [&](const auto& entry) { return CanRun(tenant, entry.second.item); });
  if (first == tenant.waiting.end()) {
    const bool too_long = FitsSomeSlot(tenant.waiting.begin()->second.item.peak_bytes);
    return too_long ? std::optional(QuotaWait{QuotaKind::kSecondsPerDay}) : std::nullopt;
  }
  if (LeftToday(tenant, now) < ChargeFor(first->second.item.estimated_seconds)) {
    return QuotaWait{QuotaKind::kSecondsPerDay, StartOfDay(std::max(tenant.day, DayOf(now)) + 1)};
  }
  if (tenant.quota.max_running > 0 && tenant.running >= tenant.quota.max_running) {
    return QuotaWait{QuotaKind::kRunning};
  }
  return std::nullopt;
}

absl::Time Scheduler::NextRelease(absl::Time now) const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [name, tenant] : tenants_) {
    if (const auto wait = WaitsForQuota(name, now); wait) next = std::min(next, wait->until);
  }
  return next;
}

std::map<std::string, Scheduler::TenantLoad> Scheduler::Loads(absl::Time now) const {
  std::map<std::string, TenantLoad> loads;
  for (const auto& [name, tenant] : tenants_) {
    TenantLoad& load = loads[name];
    load.waiting = static_cast<int>(tenant.waiting.size());
    load.running = tenant.running;
    load.device_seconds = tenant.device_seconds;
    if (DayOf(now) <= tenant.day) load.seconds_today = tenant.used + tenant.reserved;
    load.quota_wait = WaitsForQuota(name, now);
    for (const auto& [order, waiting] : tenant.waiting) {
      load.oldest_waiting = std::min(load.oldest_waiting, waiting.since);
    }
  }
  return loads;
}

}  // namespace quantd::server
