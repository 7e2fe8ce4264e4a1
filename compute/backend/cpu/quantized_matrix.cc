#include "compute/backend/cpu/quantized_matrix.h"

#include <utility>

namespace quantd::compute {
namespace {

constexpr int64_t kRowGrain = 64;

}  // namespace

absl::StatusOr<EncodedMatrix> NewEncoded(const NumberFormat& format, int64_t rows, int64_t cols) {
  const ScaleGrid grid = format.grid();
  absl::StatusOr<Tensor> codes =
      Tensor::Create(format.packed_dtype(), {rows, cols * format.element_bits() / 8});
  if (!codes.ok()) return codes.status();
  absl::StatusOr<Tensor> scales =
      Tensor::Create(format.scale_dtype(),
                     {(rows + grid.rows - 1) / grid.rows, (cols + grid.cols - 1) / grid.cols});
  if (!scales.ok()) return scales.status();
  return EncodedMatrix{.rows = rows,
                       .cols = cols,
                       .codes = *std::move(codes),
                       .scales = *std::move(scales),
                       .global_scale = std::nullopt};
}

absl::StatusOr<EncodedMatrix> EncodeMatrix(WorkerPool& pool, const NumberFormat& format,
                                           int64_t rows, int64_t cols, std::optional<float> global,
                                           absl::Span<const uint8_t> codes,
                                           absl::Span<const double> scales) {
  absl::StatusOr<EncodedMatrix> encoded = NewEncoded(format, rows, cols);
  if (!encoded.ok()) return encoded.status();
  encoded->global_scale = global;
  std::byte* packed = encoded->codes.bytes().data();
  const int64_t row_bytes = encoded->codes.dim(1);
  pool.ParallelFor(0, rows, kRowGrain, [&](int64_t b, int64_t e) {
    PackCodes(codes.subspan(b * cols, (e - b) * cols), format.element_bits(),
              packed + b * row_bytes);
  });
  format.PackScales(scales, global, encoded->scales.bytes().data());
  return encoded;
}

}  // namespace quantd::compute
