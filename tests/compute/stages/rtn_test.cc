#include "compute/stages/rtn.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "compute/stages/gptq.h"
#include "compute/stages/higgs.h"
#include "compute/stages/watersic.h"
#include "tests/compute/stages/correlated_layer.h"

namespace quantd::compute {
namespace {

class RtnTest : public CorrelatedLayer {
 protected:
  RtnTest() : CorrelatedLayer(96) {}

  LayerSolution Solve(const Recipe& recipe) { return SolveBy(RtnMethod(), recipe).value(); }
};

TEST_F(RtnTest, FindMethodKnowsWhatIsBuilt) {
  EXPECT_EQ(FindMethod(Method::kRtn).value(), &RtnMethod());
  EXPECT_EQ(FindMethod(Method::kGptq).value(), &GptqMethod());
  EXPECT_EQ(FindMethod(Method::kWaterSic).value(), &WaterSicMethod());
  EXPECT_EQ(FindMethod(Method::kHiggs).value(), &HiggsMethod());
  EXPECT_TRUE(absl::IsUnimplemented(FindMethod(static_cast<Method>(99)).status()));
}

TEST_F(RtnTest, TellsItsStages) {
  Solve({.transform = TransformKind::kHadamard});
  EXPECT_THAT(stages_, testing::ElementsAre("transform", "quantize", "pack"));
}

TEST_F(RtnTest, AutomaticDampingIsTheBestOfItsCandidates) {
  const LayerSolution automatic = Solve({.transform = TransformKind::kWush});
  const double error = Error(automatic);
  double best = HUGE_VAL;
  for (const double damping : {1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1}) {
    const LayerSolution fixed = Solve({.transform = TransformKind::kWush, .damping = damping});
    EXPECT_EQ(fixed.damping, damping);
    best = std::min(best, Error(fixed));
  }
  EXPECT_EQ(error, best);
  EXPECT_EQ(Error(Solve({.transform = TransformKind::kWush, .damping = automatic.damping})), error);
}

TEST_F(RtnTest, WithoutSampleDampingIsFixed) {
  problem_.sample = DeviceTensor();
  problem_.outputs = DeviceTensor();
  EXPECT_EQ(Solve({.transform = TransformKind::kWush}).damping, kDampingWithoutSample);
}

TEST_F(RtnTest, DataFreeTransformsAreNotDamped) {
  for (const TransformKind kind :
       {TransformKind::kIdentity, TransformKind::kHadamard, TransformKind::kRandom}) {
    const LayerSolution solution = Solve({.transform = kind});
    EXPECT_EQ(solution.damping, 0.0);
    EXPECT_EQ(solution.outcome, Outcome::kExact);
  }
}

TEST_F(RtnTest, SeedChoosesTheRotation) {
  const auto codes = [&](uint64_t seed) {
    const LayerSolution solution = Solve({.transform = TransformKind::kRandom, .seed = seed});
    const std::vector<NamedTensor> packed = solution.encoded->Pack(0, kRows).value();
    const absl::Span<const uint8_t> bytes = packed.front().tensor.as<uint8_t>();
    return std::vector<uint8_t>(bytes.begin(), bytes.end());
  };
  EXPECT_EQ(codes(1), codes(1));
  EXPECT_NE(codes(1), codes(2));
}

}  // namespace
}  // namespace quantd::compute
