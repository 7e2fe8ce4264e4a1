#include "compute/coding/frequency_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "absl/status/status.h"

namespace quantd::compute {
namespace {

double IdealBits(const std::vector<uint64_t>& counts) {
  const auto total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), 0ull));
  double bits = 0.0;
  for (const uint64_t count : counts) {
    if (count > 0) bits += static_cast<double>(count) * std::log2(total / count);
  }
  return bits;
}

TEST(NormalizeCounts, SumsUpAndLeavesNothingOutThatOccurs) {
  std::mt19937_64 random(1);
  for (int precision = kMinPrecision; precision <= kMaxPrecision; ++precision) {
    for (int size = 1; size <= 1 << kMinPrecision; size = 3 * size / 2 + 1) {
      std::vector<uint64_t> counts(size);
      for (uint64_t& count : counts) {
        const double draw = std::lognormal_distribution<double>(0.0, 4.0)(random);
        count = static_cast<uint64_t>(draw);
      }
      counts[size / 2] += 1;
      const std::vector<uint16_t> frequencies = NormalizeCounts(counts, precision);
      EXPECT_TRUE(SplitTables(frequencies, 1, precision).ok());
      EXPECT_GT(frequencies.back(), 0);
      for (size_t t = 0; t < counts.size(); ++t) {
        ASSERT_EQ(counts[t] > 0, t < frequencies.size() && frequencies[t] > 0) << t;
      }
    }
  }
}

TEST(NormalizeCounts, CostsLittleMoreThanExactFrequencies) {
  std::vector<uint64_t> counts;
  for (int v = -20; v <= 20; ++v) {
    counts.push_back(std::llround(1e6 * std::exp(-v * v / (2.0 * 16.0))));
  }
  const double ideal = IdealBits(counts);
  const std::vector<uint16_t> frequencies = NormalizeCounts(counts, 12);
  EXPECT_GE(BitsWith(counts, frequencies, 12), ideal);
  EXPECT_LT(BitsWith(counts, frequencies, 12), ideal * 1.002);
  EXPECT_LT(BitsWith(counts, NormalizeCounts(counts, 14), 14), ideal * 1.0003);
}

TEST(NormalizeCounts, ASingleTokenTakesAll) {
  EXPECT_EQ(NormalizeCounts({0, 0, 5, 0}, 12), (std::vector<uint16_t>{0, 0, 4096}));
}

TEST(SplitTables, EndsEachTableWhereItsSumIsWhole) {
  const std::vector<uint16_t> two = {156, 0, 100, 256};
  const auto tables = SplitTables(two, 2, 8);
  ASSERT_TRUE(tables.ok()) << tables.status();
  EXPECT_EQ((*tables)[0], absl::MakeConstSpan(two).first(3));
  EXPECT_EQ((*tables)[1], absl::MakeConstSpan(two).last(1));
  EXPECT_TRUE(SplitTables({}, 0, 8).ok());
}

TEST(SplitTables, RefusesOtherSumsAndNumbers) {
  for (const std::vector<uint16_t>& bad : std::vector<std::vector<uint16_t>>{
           {}, {100, 155}, {200, 100}, {256, 256}, {256, 0}, {256, 1}}) {
    EXPECT_EQ(SplitTables(bad, 1, 8).status().code(), absl::StatusCode::kDataLoss);
  }
}

}  // namespace
}  // namespace quantd::compute
