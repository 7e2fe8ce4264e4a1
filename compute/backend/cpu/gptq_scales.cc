#include "compute/backend/cpu/gptq_scales.h"

#include <algorithm>

#include "compute/formats/element_codec.h"

namespace quantd::compute {
namespace {

constexpr double kHeadroom = 8.0;
// Below it a scale that the divisor makes a subnormal E4M3 number would not survive a smaller one.
constexpr double kSmallGroup = 1.0 / 1024.0;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

bool GptqScales::FollowsAmax(const NumberFormat& format) {
  return format.GlobalScale(1.0) != format.GlobalScale(2.0);
}

GptqScales::GptqScales(const NumberFormat& format, int64_t rows, int64_t cols, double amax)
    : format_(format),
      grid_(format.grid()),
      scale_rows_(CeilDivide(rows, grid_.rows)),
      scale_cols_(CeilDivide(cols, grid_.cols)),
      follows_amax_(FollowsAmax(format)),
      amax_(amax),
      global_(format.GlobalScale(amax)),
      small_global_(format.GlobalScale(amax * kHeadroom)),
      scales_(scale_rows_ * scale_cols_) {}

void GptqScales::Set(int64_t row, int64_t rows, int64_t col, int64_t cols, const double* values) {
  const int64_t groups = CeilDivide(cols, grid_.cols);
  std::vector<double> scales(CeilDivide(rows, grid_.rows) * groups);
  if (!follows_amax_) {
    format_.ComputeScales(values, rows, cols, global_, scales.data());
  } else {
    for (int64_t g = 0; g < rows * groups; ++g) {  // such a group lies in one row
      const double* group = values + g * grid_.cols;
      const double amax = MaxMagnitude(group, grid_.cols);
      const bool small = amax > amax_ || amax < kSmallGroup * amax_;
      format_.ComputeScales(group, 1, grid_.cols, small ? small_global_ : global_, &scales[g]);
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
  if (!follows_amax_ || scales_.empty()) return global_;
  const double largest = *std::max_element(scales_.begin(), scales_.end());
  float global = *global_;
  for (double h = 1.0; h < kHeadroom && largest * global > kE4m3Max * (1.0 + 1e-9); h *= 2.0) {
    global *= 0.5f;
  }
  return global;
}

}  // namespace quantd::compute
