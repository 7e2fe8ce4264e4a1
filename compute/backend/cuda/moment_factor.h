#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"

namespace quantd::compute {

// In place: the lower triangle of a row-major symmetric matrix to its Cholesky factor (float64,
// cuSOLVER). False where it is not positive definite. Waits for the result. What is above the
// diagonal is neither read nor written.
absl::StatusOr<bool> CudaCholesky(CudaStream& stream, int64_t size, double* matrix);

absl::StatusOr<MomentFactor> CudaFactorMoment(CudaStream& stream, const DeviceTensor& moment,
                                              double added);
absl::StatusOr<std::vector<double>> CudaEigenvalues(CudaStream& stream, const DeviceTensor& matrix);

}  // namespace quantd::compute
