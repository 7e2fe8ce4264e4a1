#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/formats/encoded_weight.h"
#include "compute/recipe/recipe.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// How HIGGS (arXiv 2411.17525) stores a weight. Each group of columns of a row, its signs flipped
// at random, goes through a Hadamard matrix, which makes its values close to normal; they are
// divided by their root mean square and rounded, `dimension` at a time, to a grid that is optimal
// for normal values.
struct GridSpec {
  int bits = 4;              // a value, 2..4
  int dimension = 1;         // 1 or 2
  int64_t group_size = 256;  // a power of two in 32..1024, divides the columns
  uint64_t seed = 0;         // of the signs

  int code_bits() const { return bits * dimension; }
};
// That of a resolved recipe of HIGGS.
GridSpec GridSpecOf(const Recipe& resolved);

// Codes and scales of a weight on a Gaussian grid; the layout is in docs/formats.md.
class GridWeight final : public EncodedWeight {
 public:
  // Quantizes rows x cols finite values.
  static absl::StatusOr<std::shared_ptr<const GridWeight>> Quantize(const GridSpec& spec,
                                                                    absl::Span<const double> values,
                                                                    int64_t rows, int64_t cols);

  // Reads packed tensors of untrusted origin. INVALID_ARGUMENT where they are missing or do not fit
  // rows x cols, or a scale is not a finite number >= 0.
  static absl::StatusOr<std::shared_ptr<const GridWeight>> Unpack(
      const GridSpec& spec, absl::Span<const NamedTensor> tensors, int64_t rows, int64_t cols);

  // weight_packed, weight_scale, weight_global_scale.
  absl::StatusOr<std::vector<NamedTensor>> Pack(int64_t first, int64_t rows) const override;

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

  // Rows [first, first + rows), `values` of size rows * cols: exactly as decoded, before the
  // rounding to float32 at the end. Finite.
  void Dequantize(int64_t first, int64_t rows, absl::Span<double> values) const;

 private:
  GridWeight() = default;

  GridSpec spec_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  std::vector<uint8_t> codes_;    // rows x cols / dimension
  std::vector<uint16_t> scales_;  // float16, rows x cols / group_size
  float global_ = 1.0f;           // divides the scales; a power of two
};

}  // namespace quantd::compute
