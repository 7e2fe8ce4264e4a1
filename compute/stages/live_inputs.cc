#include "compute/stages/live_inputs.h"

#include <algorithm>

namespace quantd::compute {
namespace {

constexpr double kDeadRatio = 1e-3;  // of the median

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return 0.5 * (*middle + *std::max_element(values.begin(), middle));
}

}  // namespace

LiveInputs FindLiveInputs(absl::Span<const double> diagonal) {
  LiveInputs inputs;
  if (diagonal.empty()) return inputs;
  const double least = kDeadRatio * Median({diagonal.begin(), diagonal.end()});
  for (size_t i = 0; i < diagonal.size(); ++i) {
    const bool live = diagonal[i] > 0.0 && diagonal[i] >= least;
    (live ? inputs.live : inputs.dead).push_back(static_cast<int64_t>(i));
  }
  return inputs;
}

}  // namespace quantd::compute
