#pragma once

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/formats/number_format.h"

namespace quantd::compute {

// Backend::SolveGptq. Operands were checked.
//
// Positions are processed in panels of about 256, from the last. Inside a panel each unit's error
// goes to the panel's other positions at once; what a whole panel does to all earlier ones is one
// matrix product.
absl::StatusOr<GptqSolution> CudaSolveGptq(CudaStream& stream, const NumberFormat& format,
                                           const GptqProblem& problem);

}  // namespace quantd::compute
