#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "compute/backend/cuda/gram_tiles.h"

namespace quantd::compute {

// Rows whose products the tensor cores sum in float32; from there on sums are in float64. Their
// additions truncate, so that errors of long sums of equal signs add up: see docs/numerics.md.
constexpr int64_t kGramDepth = 256;

// Whether LaunchAddGramHopper runs on a device of this compute capability.
constexpr bool IsGramHopper(int major, int minor) { return major == 9 && minor == 0; }

// sum += x^T x of `slices` x kSliceTokens rows of `cols` bfloat16 values, `pitch` elements apart
// (a multiple of 8; `rows` is aligned to 16 bytes), in tiles (gram_tiles.h). Sums over kGramDepth
// rows are added in the order of the rows: the bits do not depend on how many slices a call gets.
// `pairs`: all tiles, on the device. `blocks`: multiprocessors of the device.
cudaError_t LaunchAddGramHopper(cudaStream_t stream, int blocks, const GramPair* pairs,
                                int pair_count, int64_t cols, int64_t pitch, int64_t slices,
                                const uint16_t* rows, double* sum);

}  // namespace quantd::compute
