#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace quantd::compute {

// Normal values of mean 0, the same ones for the same seed.
inline std::vector<double> NormalValues(int64_t count, uint64_t seed, double deviation = 1.0) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0.0, deviation);
  std::vector<double> values(count);
  for (double& value : values) value = normal(random);
  return values;
}

}  // namespace quantd::compute
