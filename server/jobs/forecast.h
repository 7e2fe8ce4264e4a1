#pragma once

#include <map>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "server/jobs/scheduler.h"

namespace quantd::server {

struct JobForecast {
  int position = 0;  // items that start before the job's first waiting one, plus 1; 0: none waits
  absl::Time done = absl::InfiniteFuture();  // of what runs and waits; infinite: not known
};
using Forecast = std::map<std::pair<std::string, std::string>, JobForecast>;  // by tenant and job

// What the scheduler would do from `now` on if every item took as long as it was charged and
// nothing else arrived: with its priorities, shares, quotas and slots, because it is the scheduler
// that does it. Exact where estimates are. Holds every job that has something waiting or running.
// Stops after `most_starts` items: jobs that have some left then are not known.
Forecast ForecastQueue(Scheduler scheduler, absl::Time now, int most_starts = 20'000);

}  // namespace quantd::server
