#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"

namespace quantd::compute {

// Eigenvalues of a symmetric n x n row-major matrix (its lower triangle is read), ascending, to
// about 1e-15 of the largest. In the calling thread. INTERNAL where the iteration does not
// converge, CANCELLED where `stream` is cancelled meanwhile: the longest that it does not look is
// the iteration at the end, about 1e-8 n^2 seconds.
absl::StatusOr<std::vector<double>> SymmetricEigenvalues(int64_t n, const double* matrix,
                                                         const Stream* stream = nullptr);

}  // namespace quantd::compute
