#include "compute/backend/gptq_plan.h"

#include <algorithm>
#include <numeric>

namespace quantd::compute {
namespace {

double MeanDiagonal(const GptqUnit& unit, absl::Span<const double> diagonal) {
  const auto begin = diagonal.begin() + unit.first;
  return std::accumulate(begin, begin + unit.width, 0.0) / static_cast<double>(unit.width);
}

}  // namespace

GptqPlan PlanGptq(const GptqPlanOptions& options) {
  const int64_t cols = options.cols;
  int64_t width = std::min(options.scale_cols, cols);
  if (options.transform_block > 0) width = std::lcm(options.scale_cols, options.transform_block);
  std::vector<GptqUnit> units;
  for (int64_t first = 0; first < cols; first += width) {
    GptqUnit unit = {
        .first = first, .width = std::min(width, cols - first), .begin = 0, .inner = {}};
    unit.inner.resize(unit.width);
    std::iota(unit.inner.begin(), unit.inner.end(), 0);
    units.push_back(std::move(unit));
  }
  // First in the order of processing, which the arrangement then reverses.
  if (options.descending) {
    std::reverse(units.begin(), units.end());
    for (GptqUnit& unit : units) std::reverse(unit.inner.begin(), unit.inner.end());
  }
  const absl::Span<const double> diagonal = options.diagonal;
  if (!diagonal.empty()) {
    std::stable_sort(units.begin(), units.end(), [&](const GptqUnit& a, const GptqUnit& b) {
      return MeanDiagonal(a, diagonal) > MeanDiagonal(b, diagonal);
    });
    if (options.transform_block == 0) {
      for (GptqUnit& unit : units) {
        std::stable_sort(unit.inner.begin(), unit.inner.end(), [&](int64_t a, int64_t b) {
          return diagonal[unit.first + a] > diagonal[unit.first + b];
        });
      }
    }
  }
  std::reverse(units.begin(), units.end());
  GptqPlan plan = {.units = std::move(units), .arranged = {}};
  for (GptqUnit& unit : plan.units) {
    std::reverse(unit.inner.begin(), unit.inner.end());
    unit.begin = static_cast<int64_t>(plan.arranged.size());
    for (const int64_t offset : unit.inner) plan.arranged.push_back(unit.first + offset);
  }
  return plan;
}

}  // namespace quantd::compute
