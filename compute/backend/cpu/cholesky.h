#pragma once

#include <cstdint>

#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// Lower Cholesky factor of a symmetric positive definite n x n row-major matrix, in place: reads
// the lower triangle and leaves zeros above it. Blocked, bound by matrix products; the same bits on
// any number of threads. False where the matrix is not positive definite in float64 (a pivot is not
// above 0), and where `stream` is cancelled meanwhile, with the matrix partly overwritten: ask the
// stream first what it means.
bool FactorCholesky(WorkerPool& pool, int64_t n, double* a, const Stream* stream = nullptr);

}  // namespace quantd::compute
