#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "compute/backend/cuda/rounding_kernels.h"
#include "compute/formats/format_spec.h"

namespace quantd::compute {

// Round to nearest in one pass over a row-major weight: W' = W Tw^T by blocks is rounded as
// LaunchRound does it, and dequantized = decoded Tx.
struct RoundingTransform {
  int64_t block_size = 0;
  const double* tw = nullptr;
  const float* tx = nullptr;
};
// Whether it takes this format under blocks of this size: 4 bits in groups of 16 or 32, blocks that
// divide 32.
bool CanRoundTransformed(const FormatSpec& spec, int64_t block_size, int64_t cols);
// All parts of `to` are written.
cudaError_t LaunchRoundTransformed(cudaStream_t stream, const FormatSpec& spec, double global,
                                   const RoundingTransform& transform, int64_t rows, int64_t cols,
                                   const double* weight, const RoundedMatrix& to,
                                   double* dequantized);

}  // namespace quantd::compute
