#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/coding/integer_coder.h"
#include "compute/formats/encoded_weight.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// WaterSIC's form of a weight (numerics, section 5): What = diag(t) Z diag(alpha g) with integers Z
// over the live columns; dead columns are zero. Stored as float16 t and alpha g, one power of two
// that keeps both within float16's range, and Z under an entropy code (compute/coding); the grammar
// is in docs/formats.md.
class LatticeWeight final : public EncodedWeight {
 public:
  // Rows of Z under their entropy code.
  struct CodedRows {
    int64_t rows = 0;
    CodedIntegers coded;
  };
  // R x C, of which L = C - dead columns are live.
  struct Parts {
    int64_t rows = 0;
    int64_t cols = 0;
    std::vector<int32_t> codes = {};         // Z, R x L
    std::vector<CodedRows> coded = {};       // or all rows of it, layer by layer
    std::vector<double> spacing = {};        // alpha, L
    std::vector<double> row_scale = {};      // t, R
    std::vector<double> col_scale = {};      // g, L
    std::vector<int64_t> dead_columns = {};  // ascending
  };

  // Rounds the scales to their stored form: everything after this call speaks of what a reader will
  // decode. INVALID_ARGUMENT where the parts do not fit each other or are not finite.
  static absl::StatusOr<std::shared_ptr<const LatticeWeight>> Create(Parts parts);

  // Scales as a reader will decode them: float16 beside a power of two. INVALID_ARGUMENT where one
  // is not finite.
  static absl::StatusOr<std::vector<double>> AsStored(absl::Span<const double> scales);
  // Bits that Pack stores beside the codes of a layer: scales, the global, dead columns.
  static int64_t SideBits(int64_t rows, int64_t cols, int64_t dead);

  // Reads packed tensors of untrusted origin. INVALID_ARGUMENT for tensors that are missing or do
  // not fit rows x cols, DATA_LOSS for contents that do not fit each other. Allocates no more than
  // the bytes that came can stand for: 8192 weights each.
  static absl::StatusOr<std::shared_ptr<const LatticeWeight>> Unpack(
      absl::Span<const NamedTensor> tensors, int64_t rows, int64_t cols);

  // z_stream, z_segment_offset, z_frequency, z_escape, row_scale, col_scale, weight_global_scale,
  // dead_columns.
  absl::StatusOr<std::vector<NamedTensor>> Pack(int64_t first, int64_t rows) const override;

  int64_t rows() const { return static_cast<int64_t>(row_scale_.size()); }
  int64_t cols() const { return live_cols() + static_cast<int64_t>(dead_columns_.size()); }
  int64_t live_cols() const { return static_cast<int64_t>(col_scale_.size()); }
  // Decoded by the first call where they came coded.
  absl::Span<const int32_t> codes() const;
  absl::Span<const int64_t> dead_columns() const { return dead_columns_; }

  // Rows [first, first + rows) of What, `values` of size rows * cols: exactly as decoded, before
  // the rounding to float32 at the end. Finite.
  void Dequantize(int64_t first, int64_t rows, absl::Span<double> values) const;

 private:
  LatticeWeight() = default;
  // The code that came for rows [first, first + rows); null for none.
  const CodedIntegers* FindCoded(int64_t first, int64_t rows) const;

  mutable std::vector<int32_t> codes_;  // of a weight that came coded: written once
  mutable std::once_flag decoded_;
  std::vector<CodedRows> coded_;
  std::vector<uint16_t> row_scale_;  // float16
  std::vector<uint16_t> col_scale_;  // float16, L
  float global_ = 1.0f;              // divides; a power of two
  std::vector<int64_t> dead_columns_;
};

}  // namespace quantd::compute
