#include "compute/stages/rtn.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "compute/backend/cpu/cpu_backend.h"
#include "compute/stages/gptq.h"
#include "compute/stages/higgs.h"
#include "compute/stages/watersic.h"

namespace quantd::compute {
namespace {

class RtnTest : public testing::Test {
 protected:
  static constexpr int64_t kRows = 40;
  static constexpr int64_t kCols = 64;
  static constexpr int64_t kTokens = 96;

  RtnTest() {
    std::mt19937 generator(1);
    std::normal_distribution<double> normal;
    Tensor w = Tensor::Create(DType::kF64, {kRows, kCols}).value();
    for (double& value : w.as<double>()) value = normal(generator);
    Tensor x = Tensor::Create(DType::kF64, {kTokens, kCols}).value();
    // Correlated columns, some of them large.
    for (int64_t t = 0; t < kTokens; ++t) {
      const double shared = normal(generator);
      for (int64_t c = 0; c < kCols; ++c) {
        x.as<double>()[t * kCols + c] = (normal(generator) + shared) * (c % 9 == 0 ? 15 : 1);
      }
    }
    Tensor m = Tensor::Create(DType::kF64, {kCols / 32, 32, 32}).value();
    for (int64_t i = 0; i < kCols; ++i) {
      for (int64_t j = 0; j < 32; ++j) {
        for (int64_t t = 0; t < kTokens; ++t) {
          m.as<double>()[i * 32 + j] +=
              x.as<double>()[t * kCols + i] * x.as<double>()[t * kCols + i / 32 * 32 + j] / kTokens;
        }
      }
    }
    problem_.weight = backend_->Upload(*stream_, w).value();
    problem_.block_moment = backend_->Upload(*stream_, m).value();
    problem_.sample = backend_->Upload(*stream_, x).value();
    problem_.outputs = backend_->ComputeOutputs(*stream_, problem_.weight, problem_.sample).value();
  }

  LayerSolution Solve(Recipe recipe) {
    problem_.recipe = ResolveRecipe(recipe).value();
    return RtnMethod()
        .Solve(*backend_, *stream_, problem_,
               [this](absl::string_view stage) { stages_.emplace_back(stage); })
        .value();
  }
  double Error(const LayerSolution& solution) {
    const auto format = NumberFormat::Create(problem_.recipe, kCols);
    return backend_
        ->MeasureOutputError(*stream_, *format, solution.transform.transform, solution.decoded,
                             problem_.sample, problem_.outputs)
        ->error;
  }

  const std::unique_ptr<Backend> backend_ = NewCpuBackend(2);
  const std::unique_ptr<Stream> stream_ = backend_->NewStream(nullptr).value();
  LayerProblem problem_;
  std::vector<std::string> stages_;
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
  EXPECT_THAT(stages_, testing::ElementsAre("transform", "quantize"));
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
