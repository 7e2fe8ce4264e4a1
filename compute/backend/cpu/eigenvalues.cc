#include "compute/backend/cpu/eigenvalues.h"

#include <cblas.h>

#include <cstddef>

// OpenBLAS carries LAPACK, but Debian ships no C header for it. A Fortran compiler appends the
// lengths of the strings.
using EigenvalueRoutine = void(const char* jobz, const char* uplo, const blasint* n, double* a,
                               const blasint* lda, double* w, double* work, const blasint* lwork,
                               blasint* iwork, const blasint* liwork, blasint* info,
                               std::size_t jobz_length, std::size_t uplo_length);
extern "C" {
EigenvalueRoutine dsyevd_;         // NOLINT(readability-identifier-naming): the name in LAPACK
EigenvalueRoutine dsyevd_2stage_;  // NOLINT(readability-identifier-naming): the name in LAPACK
}

namespace quantd::compute {
namespace {

// From here on the matrix products of the two-stage routine make up for its extra operations.
constexpr int64_t kTwoStageSize = 2048;

}  // namespace

std::vector<double> SymmetricEigenvalues(int64_t n, const double* matrix) {
  if (n == 0) return {};
  openblas_set_num_threads(1);  // the pool decides how many cores are used
  const auto size = static_cast<blasint>(n);
  std::vector<double> a(matrix, matrix + n * n);
  std::vector<double> values(n);
  blasint info = 0;
  // LAPACK counts columns first: our lower triangle is its upper one.
  const auto solve = [&](double* work, blasint lwork, blasint* iwork, blasint liwork) {
    EigenvalueRoutine& routine = n < kTwoStageSize ? dsyevd_ : dsyevd_2stage_;
    routine("N", "U", &size, a.data(), &size, values.data(), work, &lwork, iwork, &liwork, &info, 1,
            1);
  };
  double work_size = 0.0;
  blasint iwork_size = 0;
  solve(&work_size, -1, &iwork_size, -1);
  if (info != 0) return {};
  std::vector<double> work(static_cast<size_t>(work_size) + 1);
  std::vector<blasint> iwork(static_cast<size_t>(iwork_size) + 1);
  solve(work.data(), static_cast<blasint>(work.size()), iwork.data(),
        static_cast<blasint>(iwork.size()));
  if (info != 0) return {};
  return values;
}

}  // namespace quantd::compute
