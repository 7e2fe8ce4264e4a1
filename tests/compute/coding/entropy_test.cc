#include "compute/coding/entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <random>
#include <vector>

namespace quantd::compute {
namespace {

constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
constexpr int32_t kGreatest = std::numeric_limits<int32_t>::max();

TEST(EmpiricalEntropy, OfKnownFrequencies) {
  EXPECT_EQ(EmpiricalEntropy({}), 0.0);
  EXPECT_EQ(EmpiricalEntropy({-7}), 0.0);
  EXPECT_EQ(EmpiricalEntropy(std::vector<int32_t>(1000, 3)), 0.0);
  EXPECT_DOUBLE_EQ(EmpiricalEntropy({0, 1, 0, 1}), 1.0);
  EXPECT_DOUBLE_EQ(EmpiricalEntropy({0, 0, 1, 2, 0, 0, 2, 1}), 1.5);
}

TEST(EmpiricalEntropy, DoesNotDependOnHowFarApartValuesAre) {
  EXPECT_DOUBLE_EQ(EmpiricalEntropy({kLeast, kGreatest, 0, 0, kLeast, kGreatest, 0, 0}), 1.5);
  std::vector<int32_t> near;
  std::vector<int32_t> far;
  std::mt19937 random(1);
  for (int i = 0; i < 9999; ++i) {
    near.push_back(std::poisson_distribution<int32_t>(5.0)(random));
    far.push_back(near.back() * 100'000'001 + 17);
  }
  EXPECT_DOUBLE_EQ(EmpiricalEntropy(near), EmpiricalEntropy(far));
}

TEST(EmpiricalEntropy, OfAFinelyRoundedGaussianIsItsDifferentialEntropy) {
  std::vector<int32_t> values(1'000'000);
  std::mt19937_64 random(2);
  std::normal_distribution<double> normal(0.0, 20.0);
  for (int32_t& value : values) value = static_cast<int32_t>(std::lround(normal(random)));
  const double expected = std::log2(20.0 * std::sqrt(2.0 * std::numbers::pi * std::numbers::e));
  EXPECT_NEAR(EmpiricalEntropy(values), expected, 0.003);
}

TEST(EntropyOf, CountsAloneGiveItWhereLargeValuesAreFew) {
  std::vector<int32_t> values(64 * 500);
  std::mt19937_64 random(3);
  std::normal_distribution<double> normal(0.0, 4.0);
  for (size_t i = 0; i < values.size(); ++i) {  // every 32nd column is an outlier
    values[i] = static_cast<int32_t>(std::lround(normal(random) * (i % 32 == 5 ? 900.0 : 1.0)));
  }
  values[7] = kLeast;
  const CodeCounts counts = CountTokens(values, 64);
  EXPECT_GT(counts.large.size(), 500u);
  EXPECT_NEAR(EntropyOf(counts).value(), EmpiricalEntropy(values), 1e-12);
}

TEST(EntropyOf, ManyLargeValuesAreNotListed) {
  std::vector<int32_t> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = i % 10 == 0 ? 5000 : 1;
  const CodeCounts counts = CountTokens(values, 10);
  EXPECT_EQ(CountLargeValues(counts), 100);
  EXPECT_TRUE(counts.large.empty());
  EXPECT_FALSE(EntropyOf(counts).has_value());
}

TEST(LatticeRate, CountsSixteenBitsAScaleAndADeadIndex) {
  EXPECT_DOUBLE_EQ(LatticeRate(2.0, 96, 64, 0), 2.0 + 16.0 / 96.0 + 16.0 / 64.0);
  EXPECT_DOUBLE_EQ(LatticeRate(2.0, 96, 64, 16),
                   1.5 + 16.0 / 96.0 + 16.0 / 64.0 + 16.0 * 16.0 / (96.0 * 64.0));
}

}  // namespace
}  // namespace quantd::compute
