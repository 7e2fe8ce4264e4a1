#include "tests/simulate/simulation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulate/books.h"

namespace quantd::simulate {
namespace {

using server::Scheduler;
using JobKey = std::pair<std::string, std::string>;
constexpr double kShareTolerance = 0.05;

class Simulation {
 public:
  Simulation(const Load& load, uint64_t seed)
      : load_(load),
        random_(seed),
        scheduler_(load.slots, load.ageing),
        books_(load),
        running_(load.slots.size()),
        order_(load.slots.size()) {
    std::iota(order_.begin(), order_.end(), 0);
    for (const auto& [name, tenant] : load.tenants) {
      scheduler_.SetWeight(name, tenant.weight);
      scheduler_.SetQuota(name, tenant.quota);
      result_.tenants[name].weight = tenant.weight;
    }
    for (const Work& work : load.work) result_.tenants[work.item.tenant];
    for (const auto& [job, time] : load.deadlines) deadlines_.emplace(time, job);
  }

  Result Run() {
    if (load_.work.empty()) return std::move(result_);
    now_ = start_ = last_end_ = load_.work.front().ready;
    while (now_ < absl::InfiniteFuture()) {
      EndWhatIsDue();
      ExpireWhatIsDue();
      AdmitWhatIsDue();
      StartWhatCan();
      const std::set<std::string> held = HeldTenants();
      books_.CheckSettled(now_, held);
      const absl::Time next = NextEvent();
      for (const std::string& name : held) {
        if (next == absl::InfiniteFuture()) break;  // it waits for ever
        result_.tenants[name].quota_seconds += absl::ToDoubleSeconds(next - now_);
      }
      now_ = next;
    }
    return Conclude();
  }

 private:
  struct Running {
    size_t work = 0;
    absl::Time since;
    absl::Time end;
  };

  void EndWhatIsDue() {
    for (size_t slot = 0; slot < running_.size(); ++slot) {
      if (running_[slot] && running_[slot]->end <= now_) End(slot, /*is_stopped=*/false);
    }
  }

  void End(size_t slot, bool is_stopped) {
    const Running ended = *std::exchange(running_[slot], std::nullopt);
    const Work& work = load_.work[ended.work];
    const double seconds = is_stopped ? absl::ToDoubleSeconds(now_ - ended.since) : work.seconds;
    scheduler_.Finish(static_cast<int>(slot), seconds);
    books_.Ended(ended.work, static_cast<int>(slot), seconds, now_);
    TenantResult& tenant = result_.tenants[work.item.tenant];
    ++(is_stopped ? tenant.expired : tenant.done);
    tenant.device_seconds += seconds;
    result_.busy_seconds += seconds;
    last_end_ = std::max(last_end_, now_);
    CountShare(work.item.tenant, ended.since, now_);
  }

  // What lies before the moment at which shares are compared.
  void CountShare(const std::string& tenant, absl::Time since, absl::Time end) {
    if (!load_.saturated_until) return;
    const absl::Duration counted = std::min(end, *load_.saturated_until) - since;
    shares_[tenant] += std::max(0.0, absl::ToDoubleSeconds(counted));
  }

  void ExpireWhatIsDue() {
    while (!deadlines_.empty() && deadlines_.begin()->first <= now_) {
      const JobKey job = deadlines_.begin()->second;
      deadlines_.erase(deadlines_.begin());
      expired_.insert(job);
      scheduler_.RemoveJob(job.first, job.second);
      for (const size_t work : std::exchange(waiting_[job], {})) Drop(work);
      for (size_t slot = 0; slot < running_.size(); ++slot) {
        if (!running_[slot]) continue;
        const server::WorkItem& item = load_.work[running_[slot]->work].item;
        if (JobKey(item.tenant, item.job_id) == job) End(slot, /*is_stopped=*/true);
      }
    }
  }

  void Drop(size_t work) {
    books_.Dropped(work, now_);
    ++result_.tenants[load_.work[work].item.tenant].expired;
  }

  void AdmitWhatIsDue() {
    for (; coming_ < load_.work.size() && load_.work[coming_].ready <= now_; ++coming_) {
      const Work& work = load_.work[coming_];
      const JobKey job(work.item.tenant, work.item.job_id);
      books_.Arrived(coming_, now_);
      if (expired_.contains(job)) {
        Drop(coming_);
        continue;
      }
      waiting_[job].insert(coming_);
      scheduler_.Enqueue(work.item, work.ready);
    }
  }

  void StartWhatCan() {
    std::shuffle(order_.begin(), order_.end(), random_);
    for (const int slot : order_) {
      const auto item = scheduler_.Next(slot, now_);
      if (!item) continue;
      const size_t work = books_.IndexOf(*item);
      books_.Started(work, slot, now_);
      waiting_[{item->tenant, item->job_id}].erase(work);
      running_[slot] = {work, now_, now_ + absl::Seconds(load_.work[work].seconds)};
      result_.tenants[item->tenant].waits.push_back(
          absl::ToDoubleSeconds(now_ - load_.work[work].ready));
    }
  }

  std::set<std::string> HeldTenants() const {
    std::set<std::string> held;
    for (const auto& [name, tenant] : load_.tenants) {
      if (scheduler_.WaitsForQuota(name, now_)) held.insert(name);
    }
    return held;
  }

  absl::Time NextEvent() const {
    absl::Time next = scheduler_.NextRelease(now_);
    for (const auto& running : running_) {
      if (running) next = std::min(next, running->end);
    }
    if (coming_ < load_.work.size()) next = std::min(next, load_.work[coming_].ready);
    if (!deadlines_.empty()) next = std::min(next, deadlines_.begin()->first);
    return next;
  }

  Result Conclude() {
    books_.CheckAllAccountedFor();
    result_.seconds = absl::ToDoubleSeconds(last_end_ - start_);
    result_.slots = static_cast<int>(load_.slots.size());
    result_.preemptions = scheduler_.preemptions();
    result_.worst_wait_of_bound = books_.worst_wait_of_bound();
    result_.violations = books_.violations();
    for (auto& [name, tenant] : result_.tenants) tenant.left_over = books_.LeftOver(name);
    CheckShares();
    return std::move(result_);
  }

  void CheckShares() {
    double seconds = 0;
    double weights = 0;
    for (const auto& [name, used] : shares_) {
      seconds += used;
      weights += result_.tenants[name].weight;
    }
    for (const auto& [name, used] : shares_) {
      const double due = seconds * result_.tenants[name].weight / weights;
      const double error = std::abs(used / due - 1.0);
      result_.worst_share_error = std::max(result_.worst_share_error, error);
      if (error <= kShareTolerance) continue;
      result_.violations.push_back(absl::StrCat(name, " has had ", used, " s, its share is ", due));
    }
  }

  const Load& load_;
  std::mt19937_64 random_;
  Scheduler scheduler_;
  Books books_;
  Result result_;
  absl::Time now_;
  absl::Time start_;
  absl::Time last_end_;
  size_t coming_ = 0;
  std::vector<std::optional<Running>> running_;  // by slot
  std::vector<int> order_;
  std::map<JobKey, std::set<size_t>> waiting_;
  std::set<std::pair<absl::Time, JobKey>> deadlines_;
  std::set<JobKey> expired_;
  std::map<std::string, double> shares_;
};

}  // namespace

Result Simulate(const Load& load, uint64_t seed) { return Simulation(load, seed).Run(); }

}  // namespace quantd::simulate
