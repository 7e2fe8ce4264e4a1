#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"

namespace quantd::compute {

// The rescaling ops of Backend. Same bits every time.
absl::StatusOr<LatticeScales> CudaFitLatticeScales(CudaStream& stream,
                                                   const LatticeProblem& problem,
                                                   const LatticeCodes& codes,
                                                   const std::vector<double>& spacing);
absl::StatusOr<std::vector<double>> CudaFitRowScales(CudaStream& stream,
                                                     const LatticeProblem& problem,
                                                     const DeviceTensor& codes,
                                                     const std::vector<double>& column_scale);

}  // namespace quantd::compute
