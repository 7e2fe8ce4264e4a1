#include "compute/stages/live_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quantd::compute {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(LiveInputsTest, DeadBelowAThousandthOfTheMedian) {
  const LiveInputs inputs = FindLiveInputs(std::vector<double>{1.0, 0.9e-3, 1.1e-3, 5.0, 1.0});
  EXPECT_THAT(inputs.live, ElementsAre(0, 2, 3, 4));
  EXPECT_THAT(inputs.dead, ElementsAre(1));
}

TEST(LiveInputsTest, TheMedianOfAnEvenCountIsTheMeanOfTheMiddleTwo) {
  // The median is 2, so 1.5e-3 is dead; with the lower middle 1 it would be alive.
  EXPECT_THAT(FindLiveInputs(std::vector<double>{1.5e-3, 1.0, 3.0, 4.0}).dead, ElementsAre(0));
}

TEST(LiveInputsTest, InputsOfNoEnergyAreDeadWhateverTheMedian) {
  const LiveInputs inputs = FindLiveInputs(std::vector<double>{0.0, 0.0, 0.0, 1e-30});
  EXPECT_THAT(inputs.live, ElementsAre(3));
  EXPECT_THAT(FindLiveInputs(std::vector<double>{0.0}).live, IsEmpty());
  EXPECT_THAT(FindLiveInputs({}).dead, IsEmpty());
}

}  // namespace
}  // namespace quantd::compute
