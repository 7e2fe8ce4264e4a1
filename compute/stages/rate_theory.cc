#include "compute/stages/rate_theory.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

namespace quantd::compute {
namespace {

double ExactRoundedEntropy(double spread) {
  const double scale = 1.0 / (spread * std::numbers::sqrt2);
  const auto last = static_cast<int>(std::ceil(9.0 * spread)) + 1;
  double bits = 0.0;
  for (int k = 0; k <= last; ++k) {
    // erfc keeps the tails' digits.
    const double p = k == 0 ? std::erf(0.5 * scale)
                            : 0.5 * (std::erfc((k - 0.5) * scale) - std::erfc((k + 0.5) * scale));
    if (p > 0.0) bits -= (k == 0 ? 1.0 : 2.0) * p * std::log2(p);
  }
  return bits;
}

// log2 of the spread in steps of 1/16, from where the entropy is 0 in effect to where the
// differential entropy is exact to 1e-6.
constexpr double kFirst = -4.0;
constexpr double kLast = 1.0;
constexpr double kStep = 1.0 / 16.0;

std::vector<double> TabulateEntropies() {
  std::vector<double> table;
  for (double e = kFirst; e <= kLast + kStep; e += kStep) {
    table.push_back(ExactRoundedEntropy(std::exp2(e)));
  }
  return table;
}

}  // namespace

double WaterfillingRate(double variance, absl::Span<const double> eigenvalues, double distortion) {
  std::vector<double> levels;
  levels.reserve(eigenvalues.size());
  for (const double lambda : eigenvalues) levels.push_back(variance * std::max(lambda, 0.0));
  std::sort(levels.begin(), levels.end());
  // With the k lowest levels drowned, n D = their sum + (n - k) tau and tau is between levels.
  const auto n = static_cast<double>(levels.size());
  double drowned = 0.0;
  for (size_t k = 0; k < levels.size(); ++k) {
    const double left = n - static_cast<double>(k);
    const double tau = (n * distortion - drowned) / left;
    if (tau <= levels[k]) {
      double bits = 0.0;
      for (size_t i = k; i < levels.size(); ++i) bits += 0.5 * std::log2(levels[i] / tau);
      return bits / n;
    }
    drowned += levels[k];
  }
  return 0.0;
}

double ArithmeticOverGeometricMean(absl::Span<const double> values) {
  if (values.empty()) return 1.0;
  double sum = 0.0;
  double logs = 0.0;
  for (const double value : values) {
    sum += value;
    logs += std::log(value);
  }
  const auto n = static_cast<double>(values.size());
  return std::max(1.0, sum / n / std::exp(logs / n));
}

double RoundedGaussianEntropy(double spread) {
  static const std::vector<double> table = TabulateEntropies();
  if (!(spread > 0.0)) return 0.0;
  const double at = (std::log2(spread) - kFirst) / kStep;
  if (at <= 0.0) return 0.0;
  if (at >= (kLast - kFirst) / kStep) {
    return std::log2(spread) + 0.5 * std::log2(2.0 * std::numbers::pi * std::numbers::e);
  }
  const auto below = static_cast<size_t>(at);
  const double part = at - static_cast<double>(below);
  return table[below] + part * (table[below + 1] - table[below]);
}

}  // namespace quantd::compute
