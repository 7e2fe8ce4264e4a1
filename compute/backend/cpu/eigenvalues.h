#pragma once

#include <cstdint>
#include <vector>

#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// Eigenvalues of a symmetric n x n row-major matrix (its lower triangle is read), ascending, to
// about 1e-14 of the largest. Empty where the iteration does not converge, and where `stream` is
// cancelled meanwhile: ask it first.
std::vector<double> SymmetricEigenvalues(WorkerPool& pool, int64_t n, const double* matrix,
                                         const Stream* stream = nullptr);

}  // namespace quantd::compute
