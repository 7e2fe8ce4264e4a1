// The error figures of the whole pipeline on the golden inputs, against those of the papers'
// published code.
#include "tests/compute/pipeline/golden.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "compute/backend/cpu/cpu_backend.h"
#include "compute/pipeline/pipeline.h"

namespace quantd::compute {
namespace {

class GoldenTest : public testing::Test {
 protected:
  ErrorReport Quantize(const GoldenCase& golden, Recipe recipe,
                       MomentLayout layout = MomentLayout::kFull, int64_t block_size = 0) {
    recipe = ResolveRecipe(recipe).value();
    const SecondMoment statistic = golden.Statistic(layout, block_size);
    const LayerInput layer = {.name = golden.name, .weight = &golden.weight};
    auto results = QuantizeLayers(*backend_, recipe, {&layer, 1}, {.second_moment = &statistic},
                                  nullptr, nullptr);
    EXPECT_TRUE(results.ok()) << results.status();
    return std::move(results->front().report);
  }

  // Within 2 % of the golden figure or lower. NaN is the published code's: ours is finite.
  void ExpectNoWorse(double ours, double golden, const std::string& what) {
    EXPECT_TRUE(std::isfinite(ours)) << what;
    if (std::isfinite(golden)) {
      EXPECT_LE(ours, 1.02 * golden) << what;
    }
  }

  const std::unique_ptr<Backend> backend_ = NewCpuBackend(2);
};

constexpr Format kFormats[] = {Format::kMxfp4, Format::kNvfp4};

TEST_F(GoldenTest, StatisticEqualsGoldenSecondMoment) {
  for (const GoldenCase& golden : GoldenCases()) {
    const Tensor mean = golden.Statistic(MomentLayout::kFull, 0).FullMean().value();
    double error = 0.0;
    double norm = 0.0;
    for (int64_t i = 0; i < mean.elements(); ++i) {
      const double want = golden.second_moment.as<double>()[i];
      error += std::pow(mean.as<double>()[i] - want, 2);
      norm += want * want;
    }
    EXPECT_LE(std::sqrt(error / norm), 1e-6) << golden.name;
  }
}

TEST_F(GoldenTest, DataFreeTransformsReachGoldenErrors) {
  for (const GoldenCase& golden : GoldenCases()) {
    for (const Format format : kFormats) {
      for (const TransformKind kind : {TransformKind::kIdentity, TransformKind::kHadamard}) {
        const std::string name =
            std::string(NameOf(format)) + "." + std::string(NameOf(kind)) + ".rtn";
        const ErrorReport report = Quantize(golden, {.format = format, .transform = kind});
        const GoldenErrors want = GoldenErrorsOf(golden, name);
        ExpectNoWorse(report.relative_output_error_weight_only.value(), want.weight_only,
                      golden.name + " " + name + " weight only");
        ExpectNoWorse(report.relative_output_error_weight_and_activation.value(),
                      want.weight_and_activation, golden.name + " " + name);
      }
    }
  }
}

// WUSH's figures depend on the signs of singular vectors, which the golden data leaves to chance;
// those of WUS do not.
TEST_F(GoldenTest, ConditionalSolverReachesGoldenErrors) {
  for (const GoldenCase& golden : GoldenCases()) {
    for (const Format format : kFormats) {
      const ErrorReport report = Quantize(
          golden,
          {.format = format, .transform = TransformKind::kWus, .solver = Solver::kConditional});
      const std::string name = std::string(NameOf(format)) + ".wus.rtn";
      const GoldenErrors want = GoldenErrorsOf(golden, name);
      ExpectNoWorse(report.relative_output_error_weight_only.value(), want.weight_only,
                    golden.name + " " + name + " weight only");
      ExpectNoWorse(report.relative_output_error_weight_and_activation.value(),
                    want.weight_and_activation, golden.name + " " + name);
    }
  }
}

TEST_F(GoldenTest, MarginalSolverWithAutomaticDampingBeatsGolden) {
  double log_ratio = 0.0;
  int count = 0;
  for (const GoldenCase& golden : GoldenCases()) {
    for (const Format format : kFormats) {
      const ErrorReport report =
          Quantize(golden, {.format = format, .transform = TransformKind::kWush});
      const std::string name = std::string(NameOf(format)) + ".wush.rtn";
      const double ratio = report.relative_output_error_weight_and_activation.value() /
                           GoldenErrorsOf(golden, name).weight_and_activation;
      EXPECT_LE(ratio, 1.02) << golden.name << " " << name;
      log_ratio += std::log(ratio);
      ++count;
    }
  }
  EXPECT_LE(std::exp(log_ratio / count), 0.9);
}

TEST_F(GoldenTest, BlockDiagonalStatisticGivesTheSameTransforms) {
  for (const GoldenCase& golden : GoldenCases()) {
    const Recipe recipe = {.format = Format::kMxfp4, .transform = TransformKind::kWush};
    const ErrorReport full = Quantize(golden, recipe);
    const ErrorReport blocks = Quantize(golden, recipe, MomentLayout::kBlockDiagonal, 32);
    EXPECT_EQ(full.weight_only_measured_on, "full_second_moment");
    EXPECT_EQ(blocks.weight_only_measured_on, "block_diagonal");
    EXPECT_NEAR(blocks.relative_output_error_weight_and_activation.value(),
                full.relative_output_error_weight_and_activation.value(),
                1e-6 * full.relative_output_error_weight_and_activation.value());
  }
}

}  // namespace
}  // namespace quantd::compute
