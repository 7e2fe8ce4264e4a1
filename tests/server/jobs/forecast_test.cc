#include "server/jobs/forecast.h"

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quantd::server {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

WorkItem Item(const std::string& tenant, const std::string& job, int group, double seconds,
              int priority = kNormalPriority) {
  return {tenant, job, absl::StrCat("g", group), seconds, kGiB, priority};
}

std::vector<Scheduler::Slot> Slots(int count) {
  std::vector<Scheduler::Slot> slots;
  for (int i = 0; i < count; ++i) slots.push_back({absl::StrCat("d", i), 16 * kGiB});
  return slots;
}

absl::Time At(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

TEST(ForecastTest, ASmallQueue) {
  Scheduler scheduler(Slots(1));
  scheduler.Enqueue(Item("a", "running", 0, 10), At(0));
  scheduler.Next(0, At(0));
  scheduler.Enqueue(Item("a", "j1", 0, 2), At(0));
  scheduler.Enqueue(Item("a", "j1", 1, 3), At(0));
  scheduler.Enqueue(Item("b", "j2", 0, 4), At(0));
  Forecast forecast = ForecastQueue(scheduler, At(7));
  // a has been charged 10, so b goes first.
  EXPECT_EQ((forecast[{"b", "j2"}].position), 1);
  EXPECT_EQ((forecast[{"a", "j1"}].position), 2);
  EXPECT_EQ((forecast[{"a", "running"}].position), 0);
  EXPECT_EQ((forecast[{"a", "running"}].done), At(10));
  EXPECT_EQ((forecast[{"b", "j2"}].done), At(14));
  EXPECT_EQ((forecast[{"a", "j1"}].done), At(19));
  EXPECT_EQ(forecast.size(), 3);
  EXPECT_EQ((ForecastQueue(scheduler, At(12))[{"a", "running"}].done), At(12));  // overdue
}

TEST(ForecastTest, SeveralSlotsWorkSideBySide) {
  Scheduler scheduler(Slots(3));
  for (int i = 0; i < 6; ++i) scheduler.Enqueue(Item("a", "j1", i, 10), At(0));
  scheduler.Enqueue(Item("a", "j2", 0, 5), At(0));
  Forecast forecast = ForecastQueue(scheduler, At(0));
  EXPECT_EQ((forecast[{"a", "j1"}].done), At(20));
  EXPECT_EQ((forecast[{"a", "j2"}].position), 7);
  EXPECT_EQ((forecast[{"a", "j2"}].done), At(25));
}

TEST(ForecastTest, PrioritiesAndQuotasCount) {
  constexpr double kDay = 86400;
  Scheduler scheduler(Slots(2));
  scheduler.SetQuota("a", {.max_running = 1, .max_seconds_per_day = 25});
  scheduler.Enqueue(Item("a", "first", 0, 10), At(kDay));
  scheduler.Enqueue(Item("a", "first", 1, 10), At(kDay));
  scheduler.Enqueue(Item("a", "urgent", 0, 10, 2), At(kDay));
  Forecast forecast = ForecastQueue(scheduler, At(kDay));
  EXPECT_EQ((forecast[{"a", "urgent"}].position), 1);
  EXPECT_EQ((forecast[{"a", "urgent"}].done), At(kDay + 10));
  EXPECT_EQ((forecast[{"a", "first"}].position), 2);
  EXPECT_EQ((forecast[{"a", "first"}].done), At(2 * kDay + 10));  // the second one is for tomorrow
}

TEST(ForecastTest, WhatCannotRunIsNotPromised) {
  Scheduler scheduler(Slots(1));
  scheduler.SetQuota("a", {.max_seconds_per_day = 5});
  scheduler.Enqueue(Item("a", "j", 0, 10), At(0));
  scheduler.Enqueue(Item("b", "j", 0, 10), At(0));
  Forecast forecast = ForecastQueue(scheduler, At(0));
  EXPECT_EQ((forecast[{"a", "j"}].done), absl::InfiniteFuture());
  EXPECT_EQ((forecast[{"a", "j"}].position), 2);
  EXPECT_EQ((forecast[{"b", "j"}].done), At(10));
}

TEST(ForecastTest, LongQueuesAreCutOff) {
  Scheduler scheduler(Slots(1));
  for (int i = 0; i < 10; ++i) scheduler.Enqueue(Item("a", absl::StrCat("j", i), 0, 1), At(0));
  Forecast forecast = ForecastQueue(scheduler, At(0), /*most_starts=*/4);
  EXPECT_EQ((forecast[{"a", "j3"}].done), At(4));
  EXPECT_EQ((forecast[{"a", "j9"}].done), absl::InfiniteFuture());
  EXPECT_EQ((forecast[{"a", "j9"}].position), 5);
}

// With estimates that come true and nothing new arriving, every position and end comes true, with
// priorities, limits and several slots.
TEST(ForecastTest, ForecastsComeTrue) {
  for (int seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::mt19937_64 random(seed);
    const auto pick = [&](int n) { return std::uniform_int_distribution<int>(0, n - 1)(random); };
    const int slots = 1 + pick(4);
    Scheduler scheduler(Slots(slots), absl::Seconds(5));
    for (int t = 0; t < 4; ++t) {
      scheduler.SetWeight(absl::StrCat("t", t), 1 + pick(3));
      scheduler.SetQuota(absl::StrCat("t", t), {.max_running = pick(3)});
    }
    const int items = 1 + pick(25);
    for (int i = 0; i < items; ++i) {
      scheduler.Enqueue(Item(absl::StrCat("t", pick(4)), absl::StrCat("j", pick(3)), i,
                             0.5 * (1 + pick(8)), pick(3)),
                        At(pick(20)));
    }
    const Forecast expected = ForecastQueue(scheduler, At(20));

    Forecast seen;
    double now = 20;
    int started = 0;
    std::set<std::pair<double, int>> ends;
    do {
      for (int slot = 0; slot < slots; ++slot) {
        const auto item = scheduler.Next(slot, At(now));
        if (!item) continue;
        ends.emplace(now + item->estimated_seconds, slot);
        JobForecast& job = seen[{item->tenant, item->job_id}];
        ++started;
        if (job.position == 0) job = {started, At(0)};
        job.done = std::max(job.done, At(now + item->estimated_seconds));
      }
      ASSERT_FALSE(ends.empty());
      now = ends.begin()->first;
      const int slot = ends.begin()->second;
      scheduler.Finish(slot, scheduler.RunningOn(slot)->charged_seconds);
      ends.erase(ends.begin());
    } while (!ends.empty() || !scheduler.waiting_jobs().empty());
    ASSERT_EQ(started, items);
    ASSERT_EQ(seen.size(), expected.size());
    for (const auto& [key, e] : expected) {
      ASSERT_EQ(seen[key].position, e.position) << key.first << "/" << key.second;
      ASSERT_EQ(seen[key].done, e.done) << key.first << "/" << key.second;
    }
  }
}

}  // namespace
}  // namespace quantd::server
