#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"

namespace quantd::compute {

struct Tridiagonal {
  std::vector<double> diagonal;      // n
  std::vector<double> off_diagonal;  // n - 1
};

// A tridiagonal matrix with the eigenvalues of a symmetric n x n row-major one (n > 0), whose lower
// triangle is read and overwritten. In the calling thread, by orthogonal transforms in two stages,
// as LAPACK's dsytrd_2stage. CANCELLED if `stream` is meanwhile, which is looked at after 32 n^2
// multiply-adds at most: 0.7 s of a core for n = 14336.
absl::StatusOr<Tridiagonal> ReduceToTridiagonal(int64_t n, double* a, const Stream* stream);

}  // namespace quantd::compute
