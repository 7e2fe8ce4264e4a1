#include "compute/backend/cuda/measure.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "compute/backend/cuda/block_product_kernels.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/matrix_kernels.h"
#include "compute/backend/cuda/measure_kernels.h"
#include "compute/backend/cuda/round_to_nearest.h"
#include "compute/backend/cuda/split_product.h"

namespace quantd::compute {
namespace {

// Rows that are taken at a time: bounds the scratch and the time until a cancel is seen.
constexpr int64_t kSliceRows = 4096;

// to (rows x cols) = a (rows x inner) b (inner x cols).
absl::Status Multiply(CudaStream& stream, int64_t rows, int64_t cols, int64_t inner,
                      const double* a, const double* b, double* to) {
  const double one = 1.0;
  const double zero = 0.0;
  return ToStatus(cublasDgemm_64(stream.blas(), CUBLAS_OP_N, CUBLAS_OP_N, cols, rows, inner, &one,
                                 b, cols, a, inner, &zero, to, cols),
                  "product");
}

// to (rows x cols) = a (rows x inner) b^T, b being cols x inner.
absl::Status MultiplyTransposed(CudaStream& stream, int64_t rows, int64_t cols, int64_t inner,
                                const double* a, const double* b, double* to) {
  const double one = 1.0;
  const double zero = 0.0;
  return ToStatus(cublasDgemm_64(stream.blas(), CUBLAS_OP_T, CUBLAS_OP_N, cols, rows, inner, &one,
                                 b, inner, a, inner, &zero, to, cols),
                  "product");
}

double SumOf(const double* parts) {
  double sum = 0.0;
  for (int i = 0; i < kPartials; ++i) sum += parts[i];
  return sum;
}

absl::StatusOr<std::vector<double>> TransformedSquares(CudaStream& stream,
                                                       const BlockTransform& transform,
                                                       const DeviceTensor& weight) {
  const int64_t rows = weight.dim(0);
  const int64_t cols = weight.dim(1);
  const auto* w = DeviceData<double>(weight);
  const int64_t slices = transform.identity ? kColumnSlices : RowBlockCount(rows);
  auto buffer = DeviceBuffer<double>::Allocate(stream, (slices + 1) * cols);
  if (!buffer.ok()) return buffer.status();
  double* const to = buffer->data() + slices * cols;
  absl::Status status = ToStatus(
      transform.identity ? LaunchColumnEnergies(stream.get(), rows, cols, w, buffer->data(), to)
                         : LaunchTransformedColumnSquares(stream.get(), transform.block_size,
                                                          DeviceData<double>(transform.tw), rows,
                                                          cols, w, buffer->data(), to),
      "spread of a weight");
  if (!status.ok()) return status;
  absl::StatusOr<std::vector<double>> squares = CopyToHost(stream, to, cols);
  if (!squares.ok() || transform.identity) return squares;
  for (double& value : *squares) value /= static_cast<double>(rows);
  return squares;
}

absl::StatusOr<std::vector<double>> TransformedMoment(CudaStream& stream,
                                                      const BlockTransform& transform,
                                                      const DeviceTensor& block_moment) {
  const int64_t size = block_moment.dim(1);
  const int64_t cols = block_moment.dim(0) * size;
  const auto* m = DeviceData<double>(block_moment);
  auto to = DeviceBuffer<double>::Allocate(stream, cols);
  if (!to.ok()) return to.status();
  absl::Status status =
      ToStatus(transform.identity
                   ? LaunchBlockDiagonal(stream.get(), size, cols, m, to->data())
                   : LaunchTransformedDiagonal(stream.get(), size, DeviceData<float>(transform.tx),
                                               cols, m, to->data()),
               "spread of a moment");
  if (!status.ok()) return status;
  return CopyToHost(stream, to->data(), cols);
}

}  // namespace

absl::StatusOr<DeviceTensor> CudaComputeOutputs(CudaStream& stream, const DeviceTensor& weight,
                                                const DeviceTensor& sample) {
  const int64_t tokens = sample.dim(0);
  const int64_t rows = weight.dim(0);
  absl::StatusOr<NewTensor<double>> outputs = NewDoubles(stream, {tokens, rows});
  if (!outputs.ok()) return outputs.status();
  const auto multiply =
      CanSplitOutputs(tokens, rows, weight.dim(1)) ? MultiplyOutputsSplit : MultiplyTransposed;
  absl::Status status = multiply(stream, tokens, rows, weight.dim(1), DeviceData<double>(sample),
                                 DeviceData<double>(weight), outputs->data);
  if (!status.ok()) return status;
  return std::move(outputs->tensor);
}

absl::StatusOr<OutputError> CudaMeasureOutputError(CudaStream& stream, const NumberFormat& format,
                                                   const BlockTransform& transform,
                                                   const DeviceTensor& decoded,
                                                   const DeviceTensor& sample,
                                                   const DeviceTensor& outputs) {
  const int64_t tokens = sample.dim(0);
  const int64_t cols = sample.dim(1);
  absl::StatusOr<NewTensor<double>> inputs = NewDoubles(stream, {tokens, cols});
  if (!inputs.ok()) return inputs.status();
  const auto* x = DeviceData<double>(sample);
  absl::Status status =
      transform.identity
          ? ToStatus(cudaMemcpyAsync(inputs->data, x,
                                     static_cast<size_t>(tokens * cols) * sizeof(double),
                                     cudaMemcpyDeviceToDevice, stream.get()),
                     "copying the sample")
          : ToStatus(
                LaunchApplyBlocks(stream.get(), transform.block_size,
                                  DeviceData<float>(transform.tx), tokens, cols, x, inputs->data),
                "transforming the sample");
  if (status.ok()) status = CudaFakeQuantize(stream, format, tokens, cols, inputs->data);
  if (!status.ok()) return status;
  absl::StatusOr<DeviceTensor> quantized = CudaComputeOutputs(stream, decoded, inputs->tensor);
  if (!quantized.ok()) return quantized.status();
  auto partial = DeviceBuffer<double>::Allocate(stream, 2 * kPartials);
  if (!partial.ok()) return partial.status();
  status = ToStatus(
      LaunchSquaredDistance(stream.get(), tokens * decoded.dim(0), DeviceData<double>(outputs),
                            DeviceData<double>(*quantized), partial->data()),
      "output error");
  if (!status.ok()) return status;
  const absl::StatusOr<std::vector<double>> parts =
      CopyToHost(stream, partial->data(), 2 * kPartials);
  if (!parts.ok()) return parts.status();
  return OutputError{.error = SumOf(parts->data()), .energy = SumOf(parts->data() + kPartials)};
}

absl::StatusOr<double> CudaMeasureSpread(CudaStream& stream, const BlockTransform& transform,
                                         const DeviceTensor& weight,
                                         const DeviceTensor& block_moment) {
  // The diagonal of Tw Mw Tw^T holds the mean squares of the transformed weight's columns.
  const absl::StatusOr<std::vector<double>> a = TransformedSquares(stream, transform, weight);
  if (!a.ok()) return a.status();
  const absl::StatusOr<std::vector<double>> b = TransformedMoment(stream, transform, block_moment);
  if (!b.ok()) return b.status();
  double spread = 0.0;
  for (size_t c = 0; c < a->size(); ++c) spread += (*a)[c] * (*b)[c];
  return spread;
}

absl::StatusOr<OutputError> CudaMeasureDriftError(CudaStream& stream, const DeviceTensor& weight,
                                                  const DeviceTensor& dequantized,
                                                  const DeviceTensor& moment,
                                                  const DeviceTensor& moment_hat,
                                                  const DeviceTensor& cross) {
  const int64_t rows = weight.dim(0);
  const int64_t cols = weight.dim(1);
  const int64_t slices = (rows + kSliceRows - 1) / kSliceRows;
  auto product = DeviceBuffer<double>::Allocate(stream, std::min(kSliceRows, rows) * cols);
  if (!product.ok()) return product.status();
  auto partial = DeviceBuffer<double>::Allocate(stream, slices * 3 * kPartials);
  if (!partial.ok()) return partial.status();
  double* part = partial->data();
  for (int64_t first = 0; first < rows; first += kSliceRows) {
    const int64_t count = std::min(kSliceRows, rows - first);
    const double* w = DeviceData<double>(weight) + first * cols;
    const double* q = DeviceData<double>(dequantized) + first * cols;
    const struct {
      const double* left;
      const DeviceTensor& matrix;
      const double* right;
    } terms[] = {{w, moment, w}, {w, cross, q}, {q, moment_hat, q}};
    for (const auto& [left, matrix, right] : terms) {
      absl::Status status = stream.CheckCancelled();
      if (!status.ok()) return status;
      status =
          Multiply(stream, count, cols, cols, left, DeviceData<double>(matrix), product->data());
      if (!status.ok()) return status;
      status =
          ToStatus(LaunchInnerProduct(stream.get(), count * cols, product->data(), right, part),
                   "drift error");
      if (!status.ok()) return status;
      part += kPartials;
    }
  }
  const absl::StatusOr<std::vector<double>> parts =
      CopyToHost(stream, partial->data(), slices * 3 * kPartials);
  if (!parts.ok()) return parts.status();
  OutputError sum;
  for (int64_t slice = 0; slice < slices; ++slice) {
    const double* of_slice = parts->data() + slice * 3 * kPartials;
    const double energy = SumOf(of_slice);
    sum.energy += energy;
    sum.error += energy - 2.0 * SumOf(of_slice + kPartials) + SumOf(of_slice + 2 * kPartials);
  }
  return sum;
}

}  // namespace quantd::compute
