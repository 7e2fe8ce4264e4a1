#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "compute/backend/cpu/worker_pool.h"
#include "compute/backend/token_sum.h"

namespace quantd::compute {

// Sum of u v^T, u in R^left_cols being a token's paired row and v in R^cols its row: left_cols x
// cols. Products are in float64 whatever the dtype. `start`: the sum to go on from. `pool` must
// outlive it.
std::unique_ptr<TokenSum> NewPairedSum(WorkerPool& pool, int64_t left_cols, int64_t cols,
                                       std::vector<double> start);

}  // namespace quantd::compute
