#include "server/ingest/byte_budget.h"

#include "gtest/gtest.h"

namespace quantd::server {
namespace {

TEST(ByteBudgetTest, WhoeverWaitsIsCalledOnceWhenThereIsRoom) {
  ByteBudget budget(100);
  int calls = 0;
  const auto resume = [&] { ++calls; };
  budget.WhenRoom(resume);
  EXPECT_EQ(calls, 1);
  budget.Add(150);
  EXPECT_FALSE(budget.HasRoom());
  budget.WhenRoom(resume);
  budget.WhenRoom(resume);
  budget.Add(-50);
  EXPECT_EQ(calls, 1);
  budget.Add(-1);
  EXPECT_EQ(calls, 3);
  EXPECT_TRUE(budget.HasRoom());
  budget.Add(-99);
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(budget.held(), 0);
}

TEST(ByteBudgetTest, OneThatIsResumedMayFillItAgain) {
  ByteBudget budget(10);
  budget.Add(10);
  int late = 0;
  budget.WhenRoom([&] { budget.Add(10); });
  budget.WhenRoom([&] {
    if (!budget.HasRoom()) budget.WhenRoom([&] { ++late; });
  });
  budget.Add(-10);
  EXPECT_EQ(late, 0);
  budget.Add(-10);
  EXPECT_EQ(late, 1);
}

TEST(ByteBudgetTest, TakingStaysWithinTheTotal) {
  ByteBudget budget(100);
  EXPECT_TRUE(budget.Take(60));
  EXPECT_FALSE(budget.Take(41));
  EXPECT_TRUE(budget.Take(40));
  EXPECT_FALSE(budget.Take(1));
  budget.Add(-100);
  EXPECT_TRUE(budget.Take(100));
}

}  // namespace
}  // namespace quantd::server
