#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "compute/backend/cuda/cuda_stream.h"

namespace quantd::compute {

// Solves matrix x = right by conjugate gradients with the diagonal as preconditioner, until the
// residual is 1e-13 of the first: for matrices that are nearly diagonal, a few products with them
// in place of a Cholesky factorization. `matrix`: symmetric, both triangles, size x size; `right`:
// b, which x replaces. False, with b as it was, where that takes too many steps or the matrix shows
// that it is not positive definite. The same bits each time.
absl::StatusOr<bool> SolveByConjugateGradients(CudaStream& stream, int64_t size,
                                               const double* matrix, double* right);

}  // namespace quantd::compute
