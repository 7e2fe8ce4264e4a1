#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "compute/backend/cpu/worker_pool.h"
#include "compute/backend/token_sum.h"

namespace quantd::compute {

// Sum of x x^T, x in R^cols; of its diagonal blocks alone where `block_size` is not 0. Slices of
// moderate bfloat16 values are multiplied in float32, others in float64: moment_accumulator.h.
// `start`: the sum to go on from. `pool` must outlive it.
std::unique_ptr<TokenSum> NewSymmetricSum(WorkerPool& pool, int64_t cols, int64_t block_size,
                                          std::vector<double> start);

}  // namespace quantd::compute
