#include "compute/backend/cuda/round_to_nearest.h"

#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "compute/backend/cuda/block_product_kernels.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/rounding_kernels.h"
#include "compute/backend/cuda/transformed_rounding_kernels.h"

namespace quantd::compute {
namespace {

// The global of a matrix whose largest magnitude `launch` writes to where it is told. Waits for it
// where the format needs it.
absl::StatusOr<std::optional<float>> GlobalOf(CudaStream& stream, const NumberFormat& format,
                                              absl::FunctionRef<cudaError_t(double*)> launch) {
  const std::optional<float> of_one = format.GlobalScale(1.0);
  // Without a global, or with a constant one.
  if (!of_one.has_value() || of_one == format.GlobalScale(1e3)) return of_one;
  auto amax = DeviceBuffer<double>::Allocate(stream, 1);
  if (!amax.ok()) return amax.status();
  if (absl::Status s = ToStatus(launch(amax->data()), "largest magnitude"); !s.ok()) return s;
  const absl::StatusOr<std::vector<double>> value = CopyToHost(stream, amax->data(), 1);
  if (!value.ok()) return value.status();
  return format.GlobalScale(value->front());
}

absl::Status Round(CudaStream& stream, const FormatSpec& spec, std::optional<float> global,
                   int64_t rows, int64_t cols, const double* values, const RoundedMatrix& to) {
  DeviceBuffer<double> scratch;
  if (NeedsScaleScratch(spec, cols)) {
    auto buffer = DeviceBuffer<double>::Allocate(stream, ScaleCount(spec, rows, cols));
    if (!buffer.ok()) return buffer.status();
    scratch = *std::move(buffer);
  }
  return ToStatus(LaunchRound(stream.get(), spec, global.value_or(1.0f), rows, cols, values,
                              scratch.data(), to),
                  "rounding to nearest");
}

absl::StatusOr<std::optional<float>> TransformedGlobal(CudaStream& stream,
                                                       const NumberFormat& format,
                                                       const BlockTransform& transform,
                                                       const DeviceTensor& weight) {
  const int64_t rows = weight.dim(0);
  const int64_t cols = weight.dim(1);
  return GlobalOf(stream, format, [&](double* amax) {
    const auto* w = DeviceData<double>(weight);
    return transform.identity
               ? LaunchAmax(stream.get(), rows * cols, w, amax)
               : LaunchTransformedAmax(stream.get(), transform.block_size,
                                       DeviceData<double>(transform.tw), rows, cols, w, amax);
  });
}

// What rounds a weight, step by step or in one pass; `to.decoded` and `dequantized` are written.
absl::Status RoundTransformed(CudaStream& stream, const FormatSpec& spec,
                              std::optional<float> global, const BlockTransform& transform,
                              const DeviceTensor& weight, const RoundedMatrix& to,
                              double* dequantized) {
  const int64_t rows = weight.dim(0);
  const int64_t cols = weight.dim(1);
  const auto* w = DeviceData<double>(weight);
  if (transform.identity) return Round(stream, spec, global, rows, cols, w, to);
  const RoundingTransform blocks = {.block_size = transform.block_size,
                                    .tw = DeviceData<double>(transform.tw),
                                    .tx = DeviceData<float>(transform.tx)};
  if (CanRoundTransformed(spec, blocks.block_size, cols)) {
    return ToStatus(LaunchRoundTransformed(stream.get(), spec, global.value_or(1.0f), blocks, rows,
                                           cols, w, to, dequantized),
                    "rounding to nearest");
  }
  absl::Status status = ToStatus(
      LaunchApplyBlocks(stream.get(), blocks.block_size, blocks.tw, rows, cols, w, to.decoded),
      "transforming a weight");
  if (status.ok()) status = Round(stream, spec, global, rows, cols, to.decoded, to);
  if (status.ok()) {
    status = ToStatus(LaunchApplyTransposedBlocks(stream.get(), blocks.block_size, blocks.tx, rows,
                                                  cols, to.decoded, dequantized),
                      "transforming a weight back");
  }
  return status;
}

}  // namespace

absl::StatusOr<NewCodes> NewDeviceCodes(CudaStream& stream, const NumberFormat& format,
                                        int64_t rows, int64_t cols) {
  const ScaleGrid grid = format.grid();
  absl::StatusOr<NewTensor<uint8_t>> codes = NewDeviceTensor<uint8_t>(
      stream, format.packed_dtype(), {rows, cols * format.element_bits() / 8});
  if (!codes.ok()) return codes.status();
  absl::StatusOr<NewTensor<uint8_t>> scales = NewDeviceTensor<uint8_t>(
      stream, format.scale_dtype(),
      {(rows + grid.rows - 1) / grid.rows, (cols + grid.cols - 1) / grid.cols});
  if (!scales.ok()) return scales.status();
  return NewCodes{.codes = *std::move(codes), .scales = *std::move(scales)};
}

absl::StatusOr<QuantizedWeight> CudaRoundToNearest(CudaStream& stream, const NumberFormat& format,
                                                   const BlockTransform& transform,
                                                   const DeviceTensor& weight) {
  const absl::StatusOr<std::optional<float>> global =
      TransformedGlobal(stream, format, transform, weight);
  if (!global.ok()) return global.status();
  const int64_t rows = weight.dim(0);
  const int64_t cols = weight.dim(1);
  absl::StatusOr<NewCodes> encoded = NewDeviceCodes(stream, format, rows, cols);
  if (!encoded.ok()) return encoded.status();
  absl::StatusOr<NewTensor<double>> decoded = NewDoubles(stream, {rows, cols});
  if (!decoded.ok()) return decoded.status();
  NewTensor<double> dequantized = *decoded;
  if (!transform.identity) {
    absl::StatusOr<NewTensor<double>> own = NewDoubles(stream, {rows, cols});
    if (!own.ok()) return own.status();
    dequantized = *std::move(own);
  }
  const RoundedMatrix to = {
      .decoded = decoded->data, .codes = encoded->codes.data, .scales = encoded->scales.data};
  absl::Status status =
      RoundTransformed(stream, format.spec(), *global, transform, weight, to, dequantized.data);
  if (!status.ok()) return status;
  return QuantizedWeight{.codes = std::move(encoded->codes.tensor),
                         .scales = std::move(encoded->scales.tensor),
                         .global_scale = *global,
                         .dequantized = std::move(dequantized.tensor),
                         .decoded = std::move(decoded->tensor)};
}

absl::Status CudaFakeQuantize(CudaStream& stream, const NumberFormat& format, int64_t rows,
                              int64_t cols, double* values) {
  const NumberFormat& engine = format.activation_format();
  const absl::StatusOr<std::optional<float>> global = GlobalOf(stream, engine, [&](double* amax) {
    return LaunchAmax(stream.get(), rows * cols, values, amax);
  });
  if (!global.ok()) return global.status();
  return Round(stream, engine.spec(), *global, rows, cols, values, {.decoded = values});
}

}  // namespace quantd::compute
