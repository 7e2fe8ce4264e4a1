#pragma once

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"

namespace quantd::compute {

// Backend::CancelSuccessively. The recursion halves the columns as the CPU's does: all but the last
// panels' products are cuBLAS's in float64. RESOURCE_EXHAUSTED where the device cannot hold a panel
// of so many rows at one time (some 200,000 on a large one).
absl::StatusOr<LatticeCodes> CudaCancelSuccessively(CudaStream& stream, const MomentFactor& factor,
                                                    const DeviceTensor& target, double spacing);

}  // namespace quantd::compute
