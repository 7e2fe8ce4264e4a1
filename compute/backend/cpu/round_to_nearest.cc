#include "compute/backend/cpu/round_to_nearest.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "compute/backend/cpu/block_product.h"
#include "compute/backend/cpu/host_memory.h"
#include "compute/backend/cpu/quantize_rows.h"
#include "compute/backend/cpu/quantized_matrix.h"

namespace quantd::compute {
namespace {

constexpr int64_t kRowGrain = 16;

void TransformRows(WorkerPool& pool, const Stream& stream, const BlockTransform& transform,
                   const DeviceTensor& weight, double* to) {
  const int64_t cols = weight.dim(1);
  const double* from = Doubles(weight);
  pool.ParallelFor(0, weight.dim(0), kRowGrain, [&](int64_t b, int64_t e) {
    if (!stream.CheckCancelled().ok()) return;
    if (transform.identity) {
      std::copy_n(from + b * cols, (e - b) * cols, to + b * cols);
    } else {
      ApplyBlocks(transform.block_size, Doubles(transform.tw), e - b, cols, from + b * cols,
                  to + b * cols);
    }
  });
}

// Replaces the transformed weights by what their codes decode to and stores the codes.
void EncodeRows(WorkerPool& pool, const Stream& stream, const NumberFormat& format, double* values,
                EncodedMatrix& encoded) {
  const int64_t grid_rows = format.grid().rows;
  const int64_t grain = std::max(kRowGrain, grid_rows);
  const int64_t cols = encoded.cols;
  const int64_t scale_cols = encoded.scales.dim(1);
  const auto scale_bytes = static_cast<int64_t>(SizeOf(format.scale_dtype()));
  pool.ParallelFor(0, encoded.rows, grain, [&](int64_t b, int64_t e) {
    if (!stream.CheckCancelled().ok()) return;
    std::vector<uint8_t> codes((e - b) * cols);
    std::vector<double> scales((e - b + grid_rows - 1) / grid_rows * scale_cols);
    QuantizeRows(format, encoded.global_scale, e - b, cols, values + b * cols, codes.data(),
                 scales.data());
    PackCodes(codes, format.element_bits(),
              encoded.codes.bytes().data() + b * encoded.codes.dim(1));
    format.PackScales(scales, encoded.global_scale,
                      encoded.scales.bytes().data() + b / grid_rows * scale_cols * scale_bytes);
  });
}

absl::StatusOr<DeviceTensor> TransformBack(WorkerPool& pool, Stream& stream,
                                           const BlockTransform& transform,
                                           const DeviceTensor& decoded) {
  if (transform.identity) return decoded;
  absl::StatusOr<WritableTensor> to = NewMatrix(stream, decoded.shape());
  if (!to.ok()) return to.status();
  const BlockStack tx = WidenedTx(transform);
  const int64_t cols = decoded.dim(1);
  const double* from = Doubles(decoded);
  pool.ParallelFor(0, decoded.dim(0), kRowGrain, [&](int64_t b, int64_t e) {
    if (!stream.CheckCancelled().ok()) return;
    ApplyTransposedBlocks(tx.block_size, tx.blocks.data(), e - b, cols, from + b * cols,
                          to->data + b * cols);
  });
  return to->tensor;
}

}  // namespace

absl::StatusOr<QuantizedWeight> CpuRoundToNearest(WorkerPool& pool, Stream& stream,
                                                  const NumberFormat& format,
                                                  const BlockTransform& transform,
                                                  const DeviceTensor& weight) {
  const int64_t rows = weight.dim(0);
  const int64_t cols = weight.dim(1);
  absl::StatusOr<EncodedMatrix> encoded = NewEncoded(format, rows, cols);
  if (!encoded.ok()) return encoded.status();
  absl::StatusOr<WritableTensor> values = NewMatrix(stream, {rows, cols});
  if (!values.ok()) return values.status();

  TransformRows(pool, stream, transform, weight, values->data);
  encoded->global_scale = format.GlobalScale(MaxMagnitude(pool, values->data, rows * cols));
  EncodeRows(pool, stream, format, values->data, *encoded);
  absl::StatusOr<DeviceTensor> dequantized = TransformBack(pool, stream, transform, values->tensor);
  if (!dequantized.ok()) return dequantized.status();
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  return QuantizedWeight{.codes = Adopt(stream, std::move(encoded->codes)),
                         .scales = Adopt(stream, std::move(encoded->scales)),
                         .global_scale = encoded->global_scale,
                         .dequantized = *std::move(dequantized),
                         .decoded = std::move(values->tensor)};
}

}  // namespace quantd::compute
