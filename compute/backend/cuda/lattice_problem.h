#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"

namespace quantd::compute {

// Backend::PrepareLattice in float64. Without drift all comes from the factor: K = W L L^T - added
// W, and without a residual the target is W L.
absl::StatusOr<LatticeProblem> CudaPrepareLattice(CudaStream& stream, const LatticeInputs& inputs);

absl::StatusOr<DeviceTensor> CudaDecodeLattice(CudaStream& stream, const DeviceTensor& codes,
                                               const std::vector<double>& row_scale,
                                               const std::vector<double>& column_scale,
                                               absl::Span<const int64_t> columns, int64_t cols);

}  // namespace quantd::compute
