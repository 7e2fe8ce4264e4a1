#include "compute/formats/gaussian_grid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace quantd::compute {
namespace {

// Mean squared error a value on a quadrature of the normal density.
double ErrorOf(absl::Span<const float> grid, int dimension) {
  constexpr double kWidth = 5.5;
  const double step = dimension == 1 ? 1e-3 : 0.04;
  double error = 0.0;
  double mass = 0.0;
  for (double x = -kWidth; x < kWidth; x += step) {
    for (double y = dimension == 1 ? 0.0 : -kWidth; y < kWidth; y += step) {
      const double weight = std::exp(-(x * x + y * y) / 2.0);
      double least = std::numeric_limits<double>::infinity();
      for (size_t i = 0; i < grid.size(); i += dimension) {
        const double dx = x - grid[i];
        const double dy = dimension == 1 ? 0.0 : y - grid[i + 1];
        least = std::min(least, dx * dx + dy * dy);
      }
      error += weight * least;
      mass += weight;
      if (dimension == 1) break;
    }
  }
  return error / mass / dimension;
}

TEST(GaussianGrid, OneDimensionIsLloydAndMax) {
  // Max 1960, table I.
  EXPECT_NEAR(ErrorOf(GaussianGrid(2, 1), 1), 0.1175, 0.0002);
  EXPECT_NEAR(ErrorOf(GaussianGrid(3, 1), 1), 0.03454, 0.00005);
  EXPECT_NEAR(ErrorOf(GaussianGrid(4, 1), 1), 0.009497, 0.00002);
  EXPECT_NEAR(GaussianGrid(2, 1)[2], 0.4528, 1e-4);
  EXPECT_NEAR(GaussianGrid(2, 1)[3], 1.510, 1e-3);
}

TEST(GaussianGrid, TwoDimensionsHaveTheErrorOfTheirTable) {
  EXPECT_NEAR(ErrorOf(GaussianGrid(2, 2), 2), 0.107596, 0.005 * 0.107596);
  EXPECT_NEAR(ErrorOf(GaussianGrid(3, 2), 2), 0.029770, 0.005 * 0.029770);
  EXPECT_NEAR(ErrorOf(GaussianGrid(4, 2), 2), 0.007808, 0.005 * 0.007808);
}

TEST(GaussianGrid, PointsAreTheCentroidsOfTheirCells) {
  for (int bits = 2; bits <= 4; ++bits) {
    for (int dimension = 1; dimension <= 2; ++dimension) {
      const absl::Span<const float> grid = GaussianGrid(bits, dimension);
      ASSERT_EQ(grid.size(), (size_t{1} << (bits * dimension)) * dimension);
      // The conditions of an optimum make the grid's energy 1 - error (a value).
      std::mt19937_64 random(1);
      std::normal_distribution<double> normal;
      double product = 0.0;
      double energy = 0.0;
      for (int n = 0; n < 100'000; ++n) {
        const double x = normal(random);
        const double y = dimension == 1 ? 0.0 : normal(random);
        double least = std::numeric_limits<double>::infinity();
        double dot = 0.0;
        double square = 0.0;
        for (size_t i = 0; i < grid.size(); i += dimension) {
          const double cx = grid[i];
          const double cy = dimension == 1 ? 0.0 : grid[i + 1];
          const double distance = (x - cx) * (x - cx) + (y - cy) * (y - cy);
          if (distance >= least) continue;
          least = distance;
          dot = x * cx + y * cy;
          square = cx * cx + cy * cy;
        }
        product += dot;
        energy += square;
      }
      EXPECT_NEAR(product / energy, 1.0, 0.003) << bits << " bits, p = " << dimension;
    }
  }
}

}  // namespace
}  // namespace quantd::compute
