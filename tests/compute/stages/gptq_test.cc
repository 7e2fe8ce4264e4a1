#include "compute/stages/gptq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "compute/stages/rtn.h"
#include "tests/compute/stages/correlated_layer.h"

namespace quantd::compute {
namespace {

using testing::HasSubstr;

class GptqTest : public CorrelatedLayer {
 protected:
  GptqTest() : CorrelatedLayer(160) {}

  absl::StatusOr<LayerSolution> Try(Recipe recipe) {
    recipe.method = Method::kGptq;
    return SolveBy(GptqMethod(), recipe);
  }
  LayerSolution Solve(const Recipe& recipe) {
    auto solution = Try(recipe);
    EXPECT_TRUE(solution.ok()) << solution.status();
    return *std::move(solution);
  }
};

TEST_F(GptqTest, IsBelowRoundToNearestOnWeightsAndActivations) {
  for (const TransformKind kind :
       {TransformKind::kIdentity, TransformKind::kHadamard, TransformKind::kRandom,
        TransformKind::kWus, TransformKind::kWush}) {
    const double error = Error(Solve({.transform = kind}));
    const Recipe rtn = ResolveRecipe({.transform = kind}).value();
    problem_.recipe = rtn;
    const LayerSolution rounded =
        RtnMethod().Solve(*backend_, *stream_, problem_, [](absl::string_view) {}).value();
    EXPECT_LT(error, Error(rounded)) << NameOf(kind);
  }
}

TEST_F(GptqTest, TellsOutcomeAndDamping) {
  const LayerSolution solution = Solve({.gptq = {.damping = 0.05}});
  EXPECT_EQ(solution.outcome, Outcome::kExact);
  EXPECT_EQ(solution.damping, 0.05);
  EXPECT_EQ(solution.retries, 0);
  EXPECT_THAT(stages_, testing::ElementsAre("quantize", "pack"));
}

// The damping of the transform is what PickTransformDamping says.
TEST_F(GptqTest, AutomaticTransformDampingIsRtns) {
  const LayerSolution automatic = Solve({.transform = TransformKind::kWush});
  EXPECT_THAT(stages_, testing::Contains("transform"));
  problem_.recipe = ResolveRecipe({.transform = TransformKind::kWush}).value();
  const double picked =
      PickTransformDamping(*backend_, *stream_, problem_, [](absl::string_view) {}).value();
  const LayerSolution fixed = Solve({.transform = TransformKind::kWush, .damping = picked});
  EXPECT_EQ(Error(automatic), Error(fixed));
  problem_.sample = DeviceTensor();
  problem_.outputs = DeviceTensor();
  EXPECT_EQ(PickTransformDamping(*backend_, *stream_, problem_, [](absl::string_view) {}).value(),
            picked);  // the recipe has it now
}

TEST_F(GptqTest, SingularMomentIsDampedAndSaysSo) {
  SetMoment([](int64_t, int64_t) { return 1.0; });
  const LayerSolution solution = Solve({.gptq = {.damping = 0.0}});
  EXPECT_EQ(solution.outcome, Outcome::kDamped);
  EXPECT_GT(solution.damping, 0.0);
  EXPECT_GE(solution.retries, 1);
}

TEST_F(GptqTest, IndefiniteMomentFallsBackOnlyWhenAllowed) {
  SetMoment([](int64_t i, int64_t j) { return i == j ? 1.0 : (i + j == 9 ? 40.0 : 0.0); });
  const absl::Status refused = Try({.transform = TransformKind::kHadamard}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("second_moment: expected a positive"));
  const LayerSolution solution =
      Solve({.transform = TransformKind::kHadamard, .gptq = {.allow_rtn_fallback = true}});
  EXPECT_EQ(solution.outcome, Outcome::kFallbackRtn);
  problem_.recipe.method = Method::kRtn;
  problem_.recipe.gptq = {};
  const LayerSolution rtn =
      RtnMethod().Solve(*backend_, *stream_, problem_, [](absl::string_view) {}).value();
  EXPECT_EQ(Error(solution), Error(rtn));
}

TEST_F(GptqTest, SaysWhichMomentsItMisses) {
  const absl::Status drift = Try({.gptq = {.asymmetric = true}}).status();
  EXPECT_EQ(drift.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(drift.message()), HasSubstr("second_moment_hat and a cross_moment"));
  problem_.full_moment = DeviceTensor();
  const absl::Status full = Try({}).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(full.message()), HasSubstr("full second moment"));
}

TEST_F(GptqTest, AsymmetricWithoutDriftIsGptq) {
  const double plain = Error(Solve({.transform = TransformKind::kHadamard}));
  problem_.second_moment_hat = problem_.full_moment;
  problem_.cross_moment = problem_.full_moment;
  EXPECT_EQ(plain,
            Error(Solve({.transform = TransformKind::kHadamard, .gptq = {.asymmetric = true}})));
}

}  // namespace
}  // namespace quantd::compute
