#include "compute/pipeline/allocate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quantd::compute {
namespace {

using ::testing::HasSubstr;

// sigma 4^-b with some noise: what a good code measures.
RateCurve RandomContinuous(std::mt19937_64& random) {
  std::uniform_real_distribution<double> unit(0.0, 1.0);
  RateCurve curve;
  curve.continuous = true;
  curve.parameters = std::floor(1e3 + 1e6 * unit(random));
  const double sigma = std::pow(10.0, 2 * unit(random) - 1);
  for (int i = 0; i < 6; ++i) {
    const double bits = 1 + i + 0.1 * unit(random);
    curve.points.push_back({bits, sigma * std::pow(4.0, -bits) * (1 + 0.2 * unit(random)), i});
  }
  return curve;
}

// Points without any order: some are of no use.
RateCurve RandomDiscrete(std::mt19937_64& random, int points) {
  std::uniform_real_distribution<double> unit(0.0, 1.0);
  RateCurve curve;
  curve.parameters = std::floor(100 + 1000 * unit(random));
  for (int i = 0; i < points; ++i) {
    const double bits = 2 + 6 * unit(random);
    curve.points.push_back({bits, std::pow(4.0, -bits) * (0.3 + 3 * unit(random)), i});
  }
  return curve;
}

std::vector<RateCurve> Curves(int count, uint64_t seed, bool continuous) {
  std::mt19937_64 random(seed);
  std::vector<RateCurve> curves;
  for (int i = 0; i < count; ++i) {
    curves.push_back(continuous ? RandomContinuous(random) : RandomDiscrete(random, 5));
  }
  return curves;
}

double SlopeAt(const RateCurve& curve, const RateChoice& choice) {
  const RatePoint& low = curve.points[choice.low];
  const RatePoint& high = curve.points[choice.high];
  return std::log(low.error / high.error) / (high.bits - low.bits) * choice.error;
}

TEST(AllocateTest, ContinuousCurvesMeetAtOneSlopeAndSpendTheBudget) {
  const std::vector<RateCurve> curves = Curves(40, 1, true);
  for (const double budget : {1.5, 2.0, 3.3, 4.0, 5.0}) {
    const auto plan = AllocateRates(curves, budget);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_NEAR(plan->best.bits, budget, 1e-9);
    EXPECT_NEAR(plan->best.error, plan->error_bound, 1e-9 * plan->best.error);
    int interior = 0;
    for (size_t i = 0; i < curves.size(); ++i) {
      const RateChoice& choice = plan->best.choices[i];
      if (choice.low == choice.high) continue;
      ++interior;
      EXPECT_NEAR(SlopeAt(curves[i], choice), plan->slope, 1e-6 * plan->slope);
    }
    EXPECT_GT(interior, 10);
  }
}

// Gaussian sources: water-filling gives every component the same error, and the rate
// R + 0.5 log2(sigma_i / geometric mean of the sigmas).
TEST(AllocateTest, ReverseWaterFillingOfGaussianSources) {
  const std::vector<double> variances = {4.0, 1.0, 0.25};
  std::vector<RateCurve> curves;
  for (const double variance : variances) {
    RateCurve curve{.parameters = 10, .points = {}, .continuous = true};
    for (int b = 0; b <= 8; ++b) {
      curve.points.push_back({double(b), variance * std::pow(4.0, -b), b});
    }
    curves.push_back(curve);
  }
  const auto plan = AllocateRates(curves, 3.25);
  ASSERT_TRUE(plan.ok());
  for (size_t i = 0; i < curves.size(); ++i) {
    EXPECT_NEAR(plan->best.choices[i].bits, 3.25 + 0.5 * std::log2(variances[i]), 1e-9);
    EXPECT_NEAR(plan->best.choices[i].error, std::pow(4.0, -3.25), 1e-12);
  }
  EXPECT_NEAR(plan->slope, 2 * std::log(2.0) * std::pow(4.0, -3.25), 1e-9);
  // The gain over one rate for all is the ratio of arithmetic to geometric mean.
  EXPECT_NEAR(plan->uniform->error / plan->best.error, (4.0 + 1.0 + 0.25) / 3.0, 1e-9);
}

TEST(AllocateTest, NeverWorseThanUniformNeverAboveBudgetAndMonotone) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    for (const bool continuous : {true, false}) {
      const std::vector<RateCurve> curves = Curves(1 + seed % 12, seed, continuous);
      const RateRange range = ReachableRates(curves);
      double last = std::numeric_limits<double>::infinity();
      for (int step = 0; step <= 20; ++step) {
        const double budget = range.least + (range.most - range.least) * step / 20.0;
        const auto plan = AllocateRates(curves, budget);
        ASSERT_TRUE(plan.ok()) << plan.status();
        EXPECT_LE(plan->best.bits, budget * (1 + 1e-9));
        EXPECT_GE(plan->best.error, plan->error_bound * (1 - 1e-9));
        EXPECT_LE(plan->best.error, last * (1 + 1e-9)) << seed << " " << step;
        last = plan->best.error;
        if (!plan->uniform.has_value()) continue;
        EXPECT_LE(plan->uniform->bits, budget * (1 + 1e-9));
        EXPECT_LE(plan->best.error, plan->uniform->error * (1 + 1e-9));
      }
    }
  }
}

// Every choice of every weight; the best that fits.
double ExhaustiveBest(const std::vector<RateCurve>& curves, double budget) {
  double parameters = 0;
  for (const RateCurve& curve : curves) parameters += curve.parameters;
  std::vector<size_t> pick(curves.size(), 0);
  double best = std::numeric_limits<double>::infinity();
  for (;;) {
    double bits = 0, error = 0;
    for (size_t i = 0; i < curves.size(); ++i) {
      bits += curves[i].parameters * curves[i].points[pick[i]].bits;
      error += curves[i].parameters * curves[i].points[pick[i]].error;
    }
    if (bits <= budget * parameters * (1 + 1e-12)) best = std::min(best, error / parameters);
    size_t i = 0;
    while (i < pick.size() && ++pick[i] == curves[i].points.size()) pick[i++] = 0;
    if (i == pick.size()) return best;
  }
}

TEST(AllocateTest, DiscreteWithinOneStepOfTheExhaustiveOptimum) {
  for (uint64_t seed = 100; seed < 160; ++seed) {
    const std::vector<RateCurve> curves = Curves(5, seed, false);
    double parameters = 0;
    double largest_step = 0;
    for (const RateCurve& curve : curves) {
      parameters += curve.parameters;
      const auto [least, most] =
          std::minmax_element(curve.points.begin(), curve.points.end(),
                              [](const auto& a, const auto& b) { return a.error < b.error; });
      largest_step = std::max(largest_step, curve.parameters * (most->error - least->error));
    }
    const RateRange range = ReachableRates(curves);
    for (const double part : {0.0, 0.2, 0.5, 0.8, 1.0}) {
      const double budget = range.least + part * (range.most - range.least);
      const auto plan = AllocateRates(curves, budget);
      ASSERT_TRUE(plan.ok()) << plan.status();
      const double optimum = ExhaustiveBest(curves, budget);
      EXPECT_LE(plan->error_bound, optimum * (1 + 1e-9));
      EXPECT_GE(plan->best.error, optimum * (1 - 1e-9));
      EXPECT_LE(plan->best.error, plan->error_bound + largest_step / parameters);
    }
  }
}

TEST(AllocateTest, OneWeightGetsTheBudget) {
  const std::vector<RateCurve> curves = Curves(1, 7, true);
  const auto plan = AllocateRates(curves, 3.0);
  ASSERT_TRUE(plan.ok());
  EXPECT_NEAR(plan->best.choices[0].bits, 3.0, 1e-9);
  EXPECT_NEAR(plan->uniform->error, plan->best.error, 1e-9 * plan->best.error);
}

TEST(AllocateTest, EqualWeightsGetEqualRates) {
  const std::vector<RateCurve> one = Curves(1, 8, true);
  const std::vector<RateCurve> curves(9, one[0]);
  const auto plan = AllocateRates(curves, 2.7);
  ASSERT_TRUE(plan.ok());
  for (const RateChoice& choice : plan->best.choices) EXPECT_NEAR(choice.bits, 2.7, 1e-9);
  EXPECT_NEAR(plan->uniform->error, plan->best.error, 1e-9 * plan->best.error);
}

TEST(AllocateTest, AWeightWithoutChoiceLeavesTheRestToTheOthers) {
  std::vector<RateCurve> curves = Curves(3, 9, true);
  curves.push_back({.parameters = curves[0].parameters, .points = {{8.0, 1e-5, 99}}});
  const auto plan = AllocateRates(curves, 4.0);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->best.choices[3].bits, 8.0);
  EXPECT_NEAR(plan->best.bits, 4.0, 1e-9);
  EXPECT_NEAR(plan->best.error, plan->error_bound, 1e-9 * plan->best.error);
}

TEST(AllocateTest, KindsMix) {
  for (uint64_t seed = 200; seed < 230; ++seed) {
    std::vector<RateCurve> curves = Curves(4, seed, true);
    for (RateCurve& curve : Curves(4, seed + 1, false)) {
      curve.parameters *= 300;
      curves.push_back(curve);
    }
    const RateRange range = ReachableRates(curves);
    const double budget = 0.5 * (range.least + range.most);
    const auto plan = AllocateRates(curves, budget);
    ASSERT_TRUE(plan.ok()) << plan.status();
    // The continuous ones take what the steps leave.
    EXPECT_NEAR(plan->best.bits, budget, 1e-9);
    EXPECT_GE(plan->best.error, plan->error_bound * (1 - 1e-9));
  }
}

TEST(AllocateTest, PointsAboveTheHullAreNotTaken) {
  // 4 bits are worse than the chord from 3 to 5; 6 bits are worse than 5.
  const std::vector<RatePoint> points = {{5, 0.01, 2}, {3, 0.1, 0}, {6, 0.02, 3}, {4, 0.09, 1}};
  for (const bool continuous : {true, false}) {
    const std::vector<RateCurve> curves(
        2, {.parameters = 1, .points = points, .continuous = continuous});
    const auto plan = AllocateRates(curves, 4.0);
    ASSERT_TRUE(plan.ok());
    for (const RateChoice& choice : plan->best.choices) {
      EXPECT_NE(choice.low, 3u);
      EXPECT_NE(choice.high, 3u);
      EXPECT_LE(choice.bits, 5.0);
    }
    if (!continuous) {
      EXPECT_NEAR(plan->best.error, 0.055, 1e-12);  // one at 3, one at 5
    }
    // A budget for the dearest points buys the best ones.
    const auto rich = AllocateRates(curves, 6.0);
    ASSERT_TRUE(rich.ok());
    EXPECT_EQ(rich->best.bits, 5.0);
    EXPECT_EQ(rich->slope, 0.0);
  }
}

TEST(AllocateTest, ZeroErrorIsAnError) {
  for (const bool continuous : {true, false}) {
    // An empty weight costs the least it can; one that becomes exact at 4 bits stops there.
    const std::vector<RateCurve> curves = {
        {.parameters = 5, .points = {{1, 0, 0}, {4, 0, 1}}, .continuous = continuous},
        {.parameters = 5, .points = {{1, 0.5, 0}, {4, 0, 1}, {8, 0, 2}}, .continuous = continuous}};
    const auto plan = AllocateRates(curves, 2.5);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->best.choices[0].bits, 1.0);
    EXPECT_NEAR(plan->best.choices[1].bits, 4.0, 1e-9);
    EXPECT_NEAR(plan->best.error, 0.0, 1e-20);
  }
}

TEST(AllocateTest, BudgetsOutOfReachNameTheRange) {
  const std::vector<RateCurve> curves = {{.parameters = 1, .points = {{2, 0.1, 0}, {4, 0.01, 1}}},
                                         {.parameters = 3, .points = {{4, 0.1, 0}, {8, 0.01, 1}}}};
  for (const double budget : {3.4, 7.1, -1.0, std::nan("")}) {
    const absl::Status status = AllocateRates(curves, budget).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange) << budget;
    EXPECT_THAT(std::string(status.message()), HasSubstr("3.5000..7.0000"));
  }
  EXPECT_TRUE(AllocateRates(curves, 3.5).ok());
  EXPECT_TRUE(AllocateRates(curves, 7.0).ok());
}

TEST(AllocateTest, UnusableNumbersAreRefused) {
  const auto code = [](const std::vector<RateCurve>& curves) {
    return AllocateRates(curves, 4.0).status().code();
  };
  EXPECT_EQ(code({}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{.parameters = 1, .points = {}}}), absl::StatusCode::kInvalidArgument);
  for (const double bad : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_EQ(code({{.parameters = bad, .points = {{4, 0.1, 0}}}}),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code({{.parameters = 1, .points = {{bad, 0.1, 0}}}}),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code({{.parameters = 1, .points = {{4, bad, 0}}}}),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace quantd::compute
