#include "server/ingest/moment_cache.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace quantd::server {
namespace {

constexpr int64_t kCols = 32;
constexpr int64_t kBytes = kCols * kCols * 8;  // of one moment

std::shared_ptr<const compute::SecondMoment> Moment() {
  return std::make_shared<const compute::SecondMoment>(
      compute::SecondMoment::Create({.cols = kCols}).value());
}

TEST(MomentCacheTest, KeepsWhatWasUsedLastWithinItsBudget) {
  MomentCache cache(2 * kBytes);
  const auto a = Moment();
  cache.Put("a", a);
  cache.Put("b", Moment());
  EXPECT_EQ(cache.bytes(), 2 * kBytes);
  EXPECT_EQ(cache.Get("a"), a);
  cache.Put("c", Moment());
  EXPECT_EQ(cache.Get("a"), a);
  EXPECT_EQ(cache.Get("b"), nullptr);
  EXPECT_NE(cache.Get("c"), nullptr);
  EXPECT_EQ(cache.bytes(), 2 * kBytes);
}

TEST(MomentCacheTest, WhatIsInUseOutlivesItsPlace) {
  MomentCache cache(kBytes);
  cache.Put("a", Moment());
  const auto held = cache.Get("a");
  cache.Put("b", Moment());
  EXPECT_EQ(cache.Get("a"), nullptr);
  EXPECT_EQ(held->spec().cols, kCols);
}

TEST(MomentCacheTest, ReplacesAndErases) {
  MomentCache cache(2 * kBytes);
  cache.Put("a", Moment());
  const auto newer = Moment();
  cache.Put("a", newer);
  EXPECT_EQ(cache.bytes(), kBytes);
  EXPECT_EQ(cache.Get("a"), newer);
  cache.Erase("a");
  cache.Erase("never there");
  EXPECT_EQ(cache.bytes(), 0);
}

TEST(MomentCacheTest, WhatExceedsTheBudgetIsNotKeptAndDisplacesNothing) {
  MomentCache cache(kBytes);
  cache.Put("a", Moment());
  cache.Put("large", std::make_shared<const compute::SecondMoment>(
                         compute::SecondMoment::Create({.cols = 2 * kCols}).value()));
  EXPECT_NE(cache.Get("a"), nullptr);
  EXPECT_EQ(cache.Get("large"), nullptr);
  MomentCache off(0);
  off.Put("a", Moment());
  EXPECT_EQ(off.Get("a"), nullptr);
}

}  // namespace
}  // namespace quantd::server
