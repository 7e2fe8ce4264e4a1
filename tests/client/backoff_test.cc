#include "client/cpp/backoff.h"

#include <gtest/gtest.h>

namespace quantd::client {
namespace {

TEST(BackoffTest, GrowsUntilTheBudgetIsSpent) {
  Backoff backoff(absl::Seconds(100), absl::Seconds(1), absl::Seconds(8));
  absl::Duration sum;
  absl::Duration expected = absl::Seconds(1);
  while (const auto wait = backoff.Next()) {
    sum += *wait;
    EXPECT_LE(*wait, expected * 1.25);
    if (sum < absl::Seconds(100)) {
      EXPECT_GE(*wait, expected * 0.75);
    }
    expected = std::min(expected * 2, absl::Seconds(8));
  }
  EXPECT_EQ(sum, absl::Seconds(100));
}

TEST(BackoffTest, WaitsAtLeastAsLongAsTheServerAsks) {
  Backoff backoff(absl::Seconds(100), absl::Milliseconds(1));
  EXPECT_EQ(backoff.Next(absl::Seconds(7)), absl::Seconds(7));
}

TEST(BackoffTest, GivesUpWhereTheServerAsksForMoreThanIsLeft) {
  Backoff backoff(absl::Seconds(10), absl::Milliseconds(1));
  EXPECT_FALSE(backoff.Next(absl::Seconds(11)).has_value());
  EXPECT_EQ(backoff.Next(absl::Seconds(6)), absl::Seconds(6));
  EXPECT_FALSE(backoff.Next(absl::Seconds(6)).has_value());
  EXPECT_EQ(backoff.Next(absl::Seconds(4)), absl::Seconds(4));
}

TEST(BackoffTest, ProgressStartsItOver) {
  Backoff backoff(absl::Seconds(2), absl::Seconds(2), absl::Seconds(2));
  while (backoff.Next()) {
  }
  backoff.Reset();
  EXPECT_TRUE(backoff.Next().has_value());
}

TEST(BackoffTest, NoBudgetMeansNoSecondAttempt) {
  Backoff backoff(absl::ZeroDuration());
  EXPECT_FALSE(backoff.Next().has_value());
}

}  // namespace
}  // namespace quantd::client
