#pragma once

#include <cstddef>
#include <vector>

namespace quantd::compute {

// Squared error over the squares of the values.
inline double RelativeError(const std::vector<double>& values, const std::vector<double>& decoded) {
  double error = 0.0;
  double energy = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    error += (values[i] - decoded[i]) * (values[i] - decoded[i]);
    energy += values[i] * values[i];
  }
  return error / energy;
}

}  // namespace quantd::compute
