#include "server/ingest/sum_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace quantd::server {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class SumMemoryTest : public testing::Test {
 protected:
  SumMemory::Taken Take(SumMemory& memory, const std::string& name, int64_t bytes) {
    return memory.Take({.bytes = bytes,
                        .granted = [this, name](SumMemory::Id) { granted_.push_back(name); },
                        .page_out = [this, name](SumMemory::Id) { asked_.push_back(name); }});
  }

  std::vector<std::string> granted_;
  std::vector<std::string> asked_;
};

TEST_F(SumMemoryTest, GrantsWhatFits) {
  SumMemory memory(100);
  EXPECT_TRUE(Take(memory, "a", 60).granted);
  EXPECT_TRUE(Take(memory, "b", 40).granted);
  EXPECT_EQ(memory.held_bytes(), 100);
  EXPECT_THAT(asked_, IsEmpty());
}

TEST_F(SumMemoryTest, AsksThoseUsedLongestAgoAndNoMoreThanItNeeds) {
  SumMemory memory(100);
  const auto a = Take(memory, "a", 40);
  const auto b = Take(memory, "b", 30);
  const auto c = Take(memory, "c", 30);
  memory.Touch(a.id);
  EXPECT_FALSE(Take(memory, "d", 50).granted);
  EXPECT_THAT(asked_, ElementsAre("b", "c"));
  EXPECT_FALSE(Take(memory, "e", 10).granted);  // it waits behind d, although it would fit then
  memory.Release(b.id);
  EXPECT_THAT(granted_, IsEmpty());
  memory.Release(c.id);
  EXPECT_THAT(granted_, ElementsAre("d", "e"));
  EXPECT_EQ(memory.held_bytes(), 100);
  EXPECT_EQ(memory.page_outs(), 2);
  EXPECT_EQ(memory.waiting(), 0);
  EXPECT_THAT(asked_, ElementsAre("b", "c"));
}

TEST_F(SumMemoryTest, WhatIsLargerThanAllOfItGetsItAlone) {
  SumMemory memory(10);
  const auto small = Take(memory, "small", 5);
  const auto large = Take(memory, "large", 1000);
  EXPECT_FALSE(large.granted);
  EXPECT_THAT(asked_, ElementsAre("small"));
  memory.Release(small.id);
  EXPECT_THAT(granted_, ElementsAre("large"));
  EXPECT_FALSE(Take(memory, "next", 1).granted);
  EXPECT_THAT(asked_, ElementsAre("small", "large"));
  memory.Release(large.id);
  EXPECT_THAT(granted_, ElementsAre("large", "next"));
}

TEST_F(SumMemoryTest, WhoLeavesTheQueueLetsTheNextIn) {
  SumMemory memory(10);
  const auto a = Take(memory, "a", 6);
  const auto b = Take(memory, "b", 8);
  const auto c = Take(memory, "c", 4);
  EXPECT_FALSE(b.granted || c.granted);
  memory.Release(b.id);
  EXPECT_THAT(granted_, ElementsAre("c"));
  memory.Release(b.id);  // known no more
  memory.Touch(b.id);
  memory.Release(a.id);
  memory.Release(c.id);
  EXPECT_EQ(memory.held_bytes(), 0);
}

}  // namespace
}  // namespace quantd::server
