#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/backend/cuda/device_memory.h"

// Products on half-precision tensor cores, ten times as fast as in float64. The cores truncate what
// they add up, so that a long sum comes out short, by up to 5e-5 of itself over 14336 terms and
// 4e-6 over 1024.
//
// A second moment: M = R (I + K) R with R = sqrt(diag M): what is large or matters most, the
// diagonal, stays outside the product; K has entries in [-1, 1], which one half holds to 2^-12 and
// two to 2^-23.
namespace quantd::compute {

struct SplitMoment {
  DeviceBuffer<double> root;    // C: R
  DeviceBuffer<__half> high;    // C x C: K
  DeviceBuffer<__half> low;     // C x C, or empty: what high leaves, times kLowScale
  DeviceBuffer<int> irregular;  // 1: M is no second moment and this does not stand for it
  // Whole, or what gives the same e K e^T in half of the work: below the diagonal blocks of
  // kTriangleBlock columns twice K, in them K, above them 0, which is not stored.
  bool triangle = false;
};
constexpr int64_t kTriangleBlock = 1024;  // one wave of tiles for 4096 rows

// Whether the product takes matrices of this size, and gains by it.
bool CanSplitMoment(int64_t rows, int64_t cols);
absl::StatusOr<SplitMoment> SplitSecondMoment(CudaStream& stream, const DeviceTensor& moment,
                                              bool with_low, bool triangle);

// product (rows x C) = left K, or left times the transposed triangle, in float32 accumulation; with
// low parts sums are cut into pieces of 1024.
absl::Status MultiplySplit(CudaStream& stream, const SplitMoment& moment, int64_t rows,
                           int64_t cols, const __half* left, float* product);

// outputs (tokens x rows) = X W^T from two halves of either (22 bits of what is largest in a row),
// cut into pieces of 2048: to 1e-5 of each output, nearly all of which is common to all of them.
bool CanSplitOutputs(int64_t tokens, int64_t rows, int64_t cols);
absl::Status MultiplyOutputsSplit(CudaStream& stream, int64_t tokens, int64_t rows, int64_t cols,
                                  const double* sample, const double* weight, double* outputs);

}  // namespace quantd::compute
