#pragma once

#include <cstdint>
#include <vector>

#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// A symmetric n x n row-major matrix (both triangles, overwritten) as Q^T A Q with the same
// eigenvalues and no entry further than `band` from the diagonal, by Householder reflections of
// panels of `band` columns (the first stage of LAPACK's two-stage drivers). Bound by matrix
// products, which the pool shares; the same bits on any number of threads. The lower band, column
// by column: entry (j + k, j) at j (band + 1) + k. Empty where `stream` is cancelled meanwhile.
std::vector<double> ReduceToBand(WorkerPool& pool, int64_t n, int64_t band, double* a,
                                 const Stream* stream = nullptr);

}  // namespace quantd::compute
