#include "server/jobs/forecast.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <vector>

namespace quantd::server {
namespace {

using JobKey = std::pair<std::string, std::string>;

class Simulation {
 public:
  Simulation(Scheduler scheduler, absl::Time now)
      : scheduler_(std::move(scheduler)), now_(now), slots_(scheduler_.slots().size()) {
    for (size_t slot = 0; slot < slots_; ++slot) Started(static_cast<int>(slot));
  }

  Forecast Run(int most_starts) {
    while (starts_ < most_starts) {
      StartWhatCan();
      if (!Advance()) break;
    }
    for (const auto& [job, waiting] : scheduler_.waiting_jobs()) {
      JobForecast& left = jobs_[job];
      if (left.position == 0) left.position = starts_ + 1;
      left.done = absl::InfiniteFuture();
    }
    return std::move(jobs_);
  }

 private:
  void StartWhatCan() {
    for (size_t slot = 0; slot < slots_; ++slot) {
      const auto item = scheduler_.Next(static_cast<int>(slot), now_);
      if (!item) continue;
      ++starts_;
      Started(static_cast<int>(slot));
      JobForecast& job = jobs_[{item->tenant, item->job_id}];
      if (job.position == 0) job.position = starts_;
    }
  }

  // Notes when what runs on the slot ends.
  void Started(int slot) {
    const auto& running = scheduler_.RunningOn(slot);
    if (!running) return;
    const absl::Time end = std::max(now_, running->since + absl::Seconds(running->charged_seconds));
    ends_.emplace(end, slot);
    const auto [job, is_new] = jobs_.try_emplace({running->item.tenant, running->item.job_id});
    if (is_new) job->second.done = end;
    job->second.done = std::max(job->second.done, end);
  }

  // On to the next end of an item or of a wait for a quota.
  bool Advance() {
    const absl::Time release = scheduler_.NextRelease(now_);
    if (ends_.empty() || release < ends_.top().first) {
      now_ = release;
      return release < absl::InfiniteFuture();
    }
    const auto [end, slot] = ends_.top();
    ends_.pop();
    now_ = std::max(now_, end);
    scheduler_.Finish(slot, scheduler_.RunningOn(slot)->charged_seconds);
    return true;
  }

  using End = std::pair<absl::Time, int>;
  Scheduler scheduler_;
  absl::Time now_;
  const size_t slots_;
  int starts_ = 0;
  Forecast jobs_;
  std::priority_queue<End, std::vector<End>, std::greater<>> ends_;
};

}  // namespace

Forecast ForecastQueue(Scheduler scheduler, absl::Time now, int most_starts) {
  return Simulation(std::move(scheduler), now).Run(most_starts);
}

}  // namespace quantd::server
