#include "compute/backend/cuda/matrix.h"

#include <utility>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/matrix_kernels.h"

namespace quantd::compute {
absl::Status QueueWiden(cudaStream_t stream, DType dtype, const std::byte* from, int64_t count,
                        double* to) {
  switch (dtype) {
    case DType::kBF16:
      return ToStatus(LaunchWidenBf16(stream, from, count, to), "widening");
    case DType::kF16:
      return ToStatus(LaunchWidenF16(stream, from, count, to), "widening");
    case DType::kF32:
      return ToStatus(LaunchWidenF32(stream, reinterpret_cast<const float*>(from), count, to),
                      "widening");
    default:
      return absl::InternalError("widening: expected BF16, F16 or F32");
  }
}

absl::StatusOr<DeviceTensor> CudaUpload(CudaStream& stream, const Tensor& tensor) {
  absl::StatusOr<NewTensor<double>> to = NewDoubles(stream, tensor.shape());
  if (!to.ok()) return to.status();
  const auto bytes = static_cast<int64_t>(tensor.bytes().size());
  if (tensor.dtype() == DType::kF64) {
    absl::Status status = CopyBytesToDevice(stream, tensor.bytes().data(), bytes, to->data);
    if (!status.ok()) return status;
    return std::move(to->tensor);
  }
  auto staged = DeviceBuffer<std::byte>::Allocate(stream, bytes);
  if (!staged.ok()) return staged.status();
  absl::Status status = CopyBytesToDevice(stream, tensor.bytes().data(), bytes, staged->data());
  if (!status.ok()) return status;
  status = QueueWiden(stream.get(), tensor.dtype(), staged->data(), tensor.elements(), to->data);
  if (!status.ok()) return status;
  return std::move(to->tensor);
}

absl::StatusOr<Tensor> CudaDownload(CudaStream& stream, const DeviceTensor& tensor) {
  absl::StatusOr<Tensor> to = Tensor::Create(tensor.dtype(), tensor.shape());
  if (!to.ok()) return to.status();
  absl::Status status =
      CopyBytesToHost(stream, DeviceData<std::byte>(tensor),
                      static_cast<int64_t>(to->bytes().size()), to->bytes().data());
  if (!status.ok()) return status;
  return to;
}

absl::StatusOr<DeviceTensor> CudaSliceRows(CudaStream& stream, const DeviceTensor& matrix,
                                           int64_t first, int64_t rows) {
  if (rows == matrix.dim(0)) return matrix;
  const int64_t cols = matrix.dim(1);
  absl::StatusOr<NewTensor<double>> to = NewDoubles(stream, {rows, cols});
  if (!to.ok()) return to.status();
  absl::Status status =
      ToStatus(cudaMemcpyAsync(to->data, DeviceData<double>(matrix) + first * cols,
                               static_cast<size_t>(rows * cols) * sizeof(double),
                               cudaMemcpyDeviceToDevice, stream.get()),
               "slicing rows");
  if (!status.ok()) return status;
  return std::move(to->tensor);
}

absl::StatusOr<DeviceTensor> CudaSubmatrix(CudaStream& stream, const DeviceTensor& matrix,
                                           absl::Span<const int64_t> rows,
                                           absl::Span<const int64_t> columns) {
  if (rows.empty() && columns.empty()) return matrix;
  absl::StatusOr<DeviceBuffer<int64_t>> row_list = Upload(stream, rows);
  if (!row_list.ok()) return row_list.status();
  absl::StatusOr<DeviceBuffer<int64_t>> column_list = Upload(stream, columns);
  if (!column_list.ok()) return column_list.status();
  const auto height = rows.empty() ? matrix.dim(0) : static_cast<int64_t>(rows.size());
  const auto width = columns.empty() ? matrix.dim(1) : static_cast<int64_t>(columns.size());
  absl::StatusOr<NewTensor<double>> to = NewDoubles(stream, {height, width});
  if (!to.ok()) return to.status();
  absl::Status status =
      ToStatus(LaunchGather(stream.get(), DeviceData<double>(matrix), matrix.dim(1),
                            rows.empty() ? nullptr : row_list->data(), height,
                            columns.empty() ? nullptr : column_list->data(), width, to->data),
               "gathering a submatrix");
  if (!status.ok()) return status;
  return std::move(to->tensor);
}

absl::StatusOr<std::vector<double>> CudaDiagonal(CudaStream& stream, const DeviceTensor& matrix) {
  const int64_t size = matrix.dim(0);
  auto diagonal = DeviceBuffer<double>::Allocate(stream, size);
  if (!diagonal.ok()) return diagonal.status();
  absl::Status status = ToStatus(
      LaunchDiagonal(stream.get(), size, DeviceData<double>(matrix), diagonal->data()), "diagonal");
  if (!status.ok()) return status;
  return CopyToHost(stream, diagonal->data(), size);
}

absl::StatusOr<std::vector<double>> CudaColumnEnergies(CudaStream& stream,
                                                       const DeviceTensor& matrix) {
  const int64_t cols = matrix.dim(1);
  auto energies = DeviceBuffer<double>::Allocate(stream, (kColumnSlices + 1) * cols);
  if (!energies.ok()) return energies.status();
  double* const means = energies->data() + kColumnSlices * cols;
  absl::Status status =
      ToStatus(LaunchColumnEnergies(stream.get(), matrix.dim(0), cols, DeviceData<double>(matrix),
                                    energies->data(), means),
               "column energies");
  if (!status.ok()) return status;
  return CopyToHost(stream, means, cols);
}

absl::StatusOr<std::vector<double>> CudaRowEnergies(CudaStream& stream,
                                                    const DeviceTensor& matrix) {
  const int64_t rows = matrix.dim(0);
  auto energies = DeviceBuffer<double>::Allocate(stream, rows);
  if (!energies.ok()) return energies.status();
  absl::Status status = ToStatus(LaunchRowEnergies(stream.get(), rows, matrix.dim(1),
                                                   DeviceData<double>(matrix), energies->data()),
                                 "row energies");
  if (!status.ok()) return status;
  return CopyToHost(stream, energies->data(), rows);
}

}  // namespace quantd::compute
