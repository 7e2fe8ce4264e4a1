#include "compute/backend/cpu/gptq_scales.h"

#include <algorithm>

#include "compute/formats/element_codec.h"

namespace quantd::compute {
namespace {

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

GptqScales::GptqScales(const NumberFormat& format, int64_t rows, int64_t cols, double amax)
    : format_(format),
      grid_(format.grid()),
      scale_rows_(CeilDivide(rows, grid_.rows)),
      scale_cols_(CeilDivide(cols, grid_.cols)),
      global_(format, amax),
      scales_(scale_rows_ * scale_cols_) {}

void GptqScales::Set(int64_t row, int64_t rows, int64_t col, int64_t cols, const double* values) {
  const int64_t groups = CeilDivide(cols, grid_.cols);
  std::vector<double> scales(CeilDivide(rows, grid_.rows) * groups);
  if (!global_.follows_amax()) {
    format_.ComputeScales(values, rows, cols, global_.global(), scales.data());
  } else {
    for (int64_t g = 0; g < rows * groups; ++g) {  // such a group lies in one row
      const double* group = values + g * grid_.cols;
      format_.ComputeScales(group, 1, grid_.cols, global_.For(MaxMagnitude(group, grid_.cols)),
                            &scales[g]);
    }
  }
  const int64_t first = col / grid_.cols;
  for (size_t i = 0; i < scales.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    scales_[(row / grid_.rows + at / groups) * scale_cols_ + first + at % groups] = scales[i];
  }
}

void GptqScales::Read(int64_t row, int64_t rows, int64_t col, double* to) const {
  for (int64_t r = 0; r < rows; ++r) {
    to[r] = scales_[(row + r) / grid_.rows * scale_cols_ + col / grid_.cols];
  }
}

std::optional<float> GptqScales::FinalGlobal() const {
  if (scales_.empty()) return global_.global();
  return global_.Final(*std::max_element(scales_.begin(), scales_.end()));
}

}  // namespace quantd::compute
