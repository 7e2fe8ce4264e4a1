#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <vector>

namespace quantd::compute {

// Rows of a matrix kept as panels of `width` columns: panel p holds its columns of row 0, of row 1
// and so on, without gaps, so that products stream through memory whatever the number of columns.
// Columns past the last are zero. Thread-compatible; distinct rows may be written at once.
template <typename T>
class PanelBuffer {
 public:
  PanelBuffer() = default;
  PanelBuffer(int64_t rows, int64_t cols, int64_t width)
      : rows_(rows),
        cols_(cols),
        width_(width),
        panels_((cols + width - 1) / width),
        values_(panels_ * rows * width) {}

  bool empty() const { return values_.empty(); }
  int64_t panels() const { return panels_; }
  const T* panel(int64_t p) const { return values_.data() + p * rows_ * width_; }

  template <typename From>
  void WriteRow(int64_t row, const From* from) {
    for (int64_t p = 0; p < panels_; ++p) {
      std::copy_n(from + p * width_, WidthOf(p), values_.data() + (p * rows_ + row) * width_);
    }
  }
  template <typename To>
  void ReadRow(int64_t row, To* to) const {
    for (int64_t p = 0; p < panels_; ++p) {
      std::copy_n(panel(p) + row * width_, WidthOf(p), to + p * width_);
    }
  }

 private:
  int64_t WidthOf(int64_t p) const { return std::min(width_, cols_ - p * width_); }

  int64_t rows_ = 0;
  int64_t cols_ = 0;
  int64_t width_ = 1;
  int64_t panels_ = 0;
  // Aligned to a vector register: loads that cross cache lines would halve the speed.
  std::vector<T, Eigen::aligned_allocator<T>> values_;
};

}  // namespace quantd::compute
