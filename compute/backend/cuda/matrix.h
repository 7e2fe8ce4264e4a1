#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"

namespace quantd::compute {

// `count` elements of BF16, F16 or F32 on the device, to float64.
absl::Status QueueWiden(cudaStream_t stream, DType dtype, const std::byte* from, int64_t count,
                        double* to);

// The ops of Backend that move matrices and read them off. Shapes were checked.
absl::StatusOr<DeviceTensor> CudaUpload(CudaStream& stream, const Tensor& tensor);
absl::StatusOr<Tensor> CudaDownload(CudaStream& stream, const DeviceTensor& tensor);
absl::StatusOr<DeviceTensor> CudaSliceRows(CudaStream& stream, const DeviceTensor& matrix,
                                           int64_t first, int64_t rows);
absl::StatusOr<DeviceTensor> CudaSubmatrix(CudaStream& stream, const DeviceTensor& matrix,
                                           absl::Span<const int64_t> rows,
                                           absl::Span<const int64_t> columns);
absl::StatusOr<std::vector<double>> CudaDiagonal(CudaStream& stream, const DeviceTensor& matrix);
absl::StatusOr<std::vector<double>> CudaColumnEnergies(CudaStream& stream,
                                                       const DeviceTensor& matrix);
absl::StatusOr<std::vector<double>> CudaRowEnergies(CudaStream& stream, const DeviceTensor& matrix);

}  // namespace quantd::compute
