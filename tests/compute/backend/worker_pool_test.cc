#include "compute/backend/cpu/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

namespace quantd::compute {
namespace {

TEST(WorkerPoolTest, VisitsEveryIndexOnce) {
  for (const int threads : {1, 2, 5}) {
    WorkerPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t grain : {1, 7, 1000}) {
      std::vector<int> visits(100);
      pool.ParallelFor(0, 100, grain, [&](int64_t b, int64_t e) {
        for (int64_t i = b; i < e; ++i) ++visits[i];
      });
      EXPECT_EQ(visits, std::vector<int>(100, 1));
    }
  }
}

TEST(WorkerPoolTest, PiecesDoNotDependOnThreads) {
  const auto pieces = [](int threads) {
    WorkerPool pool(threads);
    std::vector<int64_t> ends(50);
    pool.ParallelFor(10, 47, 5, [&](int64_t b, int64_t e) { ends[b] = e; });
    return ends;
  };
  EXPECT_EQ(pieces(1), pieces(4));
}

TEST(WorkerPoolTest, EmptyRangeRunsNothing) {
  WorkerPool pool(2);
  pool.ParallelFor(5, 5, 1, [](int64_t, int64_t) { FAIL(); });
  pool.ParallelFor(5, 3, 1, [](int64_t, int64_t) { FAIL(); });
}

TEST(WorkerPoolTest, NestedLoopsFinish) {
  WorkerPool pool(3);
  std::atomic<int> count{0};
  pool.ParallelFor(0, 8, 1, [&](int64_t, int64_t) {
    pool.ParallelFor(0, 8, 1, [&](int64_t, int64_t) { ++count; });
  });
  EXPECT_EQ(count, 64);
}

TEST(WorkerPoolTest, CallersShareThePool) {
  WorkerPool pool(3);
  std::vector<int64_t> sums(4);
  std::vector<std::thread> callers;
  for (size_t c = 0; c < sums.size(); ++c) {
    callers.emplace_back([&, c] {
      for (int round = 0; round < 50; ++round) {
        std::vector<int64_t> parts(64);
        pool.ParallelFor(0, 64, 1, [&](int64_t b, int64_t) { parts[b] = b; });
        sums[c] += std::accumulate(parts.begin(), parts.end(), int64_t{0});
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sums, std::vector<int64_t>(4, 50 * 63 * 32));
}

}  // namespace
}  // namespace quantd::compute
