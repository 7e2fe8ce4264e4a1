#include "compute/stages/rate_theory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace quantd::compute {
namespace {

TEST(RateTheoryTest, FlatSpectrumIsTheGaussianLimit) {
  const std::vector<double> flat(7, 1.5);
  EXPECT_NEAR(WaterfillingRate(2.0, flat, 3.0 * std::exp2(-6)), 3.0, 1e-12);
  EXPECT_EQ(WaterfillingRate(2.0, flat, 3.0), 0.0);
  EXPECT_EQ(WaterfillingRate(2.0, flat, 30.0), 0.0);
  EXPECT_EQ(WaterfillingRate(2.0, {}, 1.0), 0.0);
}

TEST(RateTheoryTest, WaterLevelMeetsTheDistortion) {
  std::mt19937 generator(3);
  std::exponential_distribution<double> exponential;
  std::vector<double> eigenvalues(40);
  for (double& v : eigenvalues) v = std::pow(exponential(generator), 3);
  eigenvalues[5] = -1e-18;  // rounding of a singular moment
  for (const double tau : {1e-6, 1e-3, 0.1, 3.0}) {
    double distortion = 0.0;
    double rate = 0.0;
    for (const double v : eigenvalues) {
      const double level = std::max(0.25 * v, 0.0);
      distortion += std::min(level, tau) / 40.0;
      rate += 0.5 * std::log2(std::max(1.0, level / tau)) / 40.0;
    }
    EXPECT_NEAR(WaterfillingRate(0.25, eigenvalues, distortion), rate, 1e-9);
  }
}

TEST(RateTheoryTest, RatioOfMeans) {
  EXPECT_DOUBLE_EQ(ArithmeticOverGeometricMean(std::vector<double>{1.0, 4.0}), 1.25);
  EXPECT_EQ(ArithmeticOverGeometricMean(std::vector<double>{3.0, 3.0}), 1.0);
  EXPECT_EQ(ArithmeticOverGeometricMean({}), 1.0);
}

TEST(RateTheoryTest, RoundedGaussianEntropyAgreesWithSamplesAndLimits) {
  EXPECT_EQ(RoundedGaussianEntropy(0.0), 0.0);
  EXPECT_NEAR(RoundedGaussianEntropy(0.06), 0.0, 1e-3);
  EXPECT_NEAR(RoundedGaussianEntropy(8.0), 3.0 + 2.0470956, 1e-6);
  std::mt19937 generator(4);
  std::normal_distribution<double> normal;
  for (const double spread : {0.3, 0.7, 1.5}) {
    std::vector<int> counts(64);
    for (int i = 0; i < 200000; ++i) {
      ++counts[32 + static_cast<int>(std::rint(spread * normal(generator)))];
    }
    double bits = 0.0;
    for (const int count : counts) {
      if (count > 0) bits -= count / 200000.0 * std::log2(count / 200000.0);
    }
    EXPECT_NEAR(RoundedGaussianEntropy(spread), bits, 0.01);
  }
}

}  // namespace
}  // namespace quantd::compute
