#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/cuda/cuda_device.h"
#include "compute/backend/token_sum.h"

// The sums of every kind on a CUDA device, which must outlive them. `start`: the sum to go on from,
// as SecondMoment::sum(), or empty for 0. Tokens pass through the device's pinned memory.
namespace quantd::compute {

// Sum of x x^T, x in R^cols. Slices of moderate bfloat16 values are multiplied in float32 on tensor
// cores, others in float64: gram_sum.h.
absl::StatusOr<std::unique_ptr<TokenSum>> NewCudaFullSum(CudaDevice& device, int64_t cols,
                                                         const std::vector<double>& start);
// Its diagonal blocks of `block_size` columns alone, in float64.
absl::StatusOr<std::unique_ptr<TokenSum>> NewCudaBlockSum(CudaDevice& device, int64_t cols,
                                                          int64_t block_size,
                                                          const std::vector<double>& start);
// Sum of u v^T, u in R^left_cols being a token's paired row and v in R^cols its row, in float64.
absl::StatusOr<std::unique_ptr<TokenSum>> NewCudaPairedSum(CudaDevice& device, int64_t left_cols,
                                                           int64_t cols,
                                                           const std::vector<double>& start);

}  // namespace quantd::compute
