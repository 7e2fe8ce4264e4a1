#include "compute/second_moment/row_sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace quantd::compute {
namespace {

std::vector<float> RowOf(int64_t index) { return {static_cast<float>(index), 1.0f}; }

void AddRange(RowSample& sample, const std::string& key, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) sample.Add(sample.PriorityOf(key, i), RowOf(i));
}

void ExpectEqual(const RowSample& a, const RowSample& b) {
  ASSERT_EQ(a.size(), b.size());
  for (int64_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a.rows()[i].priority, b.rows()[i].priority);
    EXPECT_EQ(a.rows()[i].values, b.rows()[i].values);
  }
}

TEST(RowSampleTest, KeepsAllUpToItsCapacity) {
  RowSample sample(10, 2, 1);
  AddRange(sample, "s", 0, 7);
  EXPECT_EQ(sample.size(), 7);
  AddRange(sample, "s", 7, 100);
  EXPECT_EQ(sample.size(), 10);
}

TEST(RowSampleTest, ZeroCapacityKeepsNothing) {
  RowSample sample(0, 2, 1);
  EXPECT_FALSE(sample.Wants(0));
  AddRange(sample, "s", 0, 5);
  EXPECT_EQ(sample.size(), 0);
}

TEST(RowSampleTest, OrderDoesNotMatter) {
  std::vector<int64_t> order(500);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  RowSample forward(32, 2, 7);
  for (const int64_t i : order) forward.Add(forward.PriorityOf("s", i), RowOf(i));
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  RowSample shuffled(32, 2, 7);
  for (const int64_t i : order) shuffled.Add(shuffled.PriorityOf("s", i), RowOf(i));
  ExpectEqual(forward, shuffled);
}

TEST(RowSampleTest, MergeEqualsWhole) {
  RowSample whole(64, 2, 5);
  AddRange(whole, "a", 0, 300);
  AddRange(whole, "b", 0, 200);
  RowSample a(64, 2, 5);
  AddRange(a, "a", 0, 300);
  RowSample b(64, 2, 5);
  AddRange(b, "b", 0, 200);
  b.Merge(a);
  ExpectEqual(b, whole);
}

TEST(RowSampleTest, SeedAndStreamChooseOtherRows) {
  RowSample one(16, 2, 1);
  AddRange(one, "s", 0, 1000);
  RowSample two(16, 2, 2);
  AddRange(two, "s", 0, 1000);
  RowSample other_stream(16, 2, 1);
  AddRange(other_stream, "t", 0, 1000);
  EXPECT_NE(one.rows()[0].values, two.rows()[0].values);
  EXPECT_NE(one.rows()[0].values, other_stream.rows()[0].values);
}

// Every row is as likely as any other: over many seeds, each tenth of the stream gets its share.
TEST(RowSampleTest, IsUniform) {
  std::vector<int> hits(10);
  constexpr int kSeeds = 200;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    RowSample sample(20, 2, seed);
    AddRange(sample, "s", 0, 1000);
    for (const RowSample::Row& row : sample.rows()) ++hits[static_cast<int>(row.values[0]) / 100];
  }
  for (const int count : hits) EXPECT_NEAR(count, kSeeds * 2, 5 * 20);  // about five sigma
}

TEST(RowSampleTest, WantsTellsTheTruth) {
  RowSample sample(8, 2, 1);
  AddRange(sample, "s", 0, 50);
  const uint64_t last = sample.rows().back().priority;
  EXPECT_FALSE(sample.Wants(last + 1));
  EXPECT_TRUE(sample.Wants(last - 1));
}

}  // namespace
}  // namespace quantd::compute
