#pragma once

#include <cstdint>
#include <vector>

namespace quantd::compute {

// Eigenvalues of a symmetric n x n row-major matrix (its lower triangle is read), ascending, to
// about 1e-15 of the largest. LAPACK, in the calling thread. Empty where the iteration does not
// converge.
std::vector<double> SymmetricEigenvalues(int64_t n, const double* matrix);

}  // namespace quantd::compute
