#include "compute/backend/cpu/eigenvalues.h"

#include <cblas.h>

#include <cstddef>
#include <utility>

#include "compute/backend/cpu/tridiagonal.h"

// OpenBLAS carries LAPACK, but Debian ships no C header for it. A Fortran compiler appends the
// lengths of the strings.
// NOLINTBEGIN(readability-identifier-naming): names in LAPACK
extern "C" {
void dsyevd_(const char* jobz, const char* uplo, const blasint* n, double* a, const blasint* lda,
             double* w, double* work, const blasint* lwork, blasint* iwork, const blasint* liwork,
             blasint* info, std::size_t jobz_length, std::size_t uplo_length);
void dsterf_(const blasint* n, double* d, double* e, blasint* info);
}
// NOLINTEND(readability-identifier-naming)

namespace quantd::compute {
namespace {

// Up to here one call of LAPACK takes less than a second. From here on the matrix products of two
// stages make up for their extra operations.
constexpr int64_t kTwoStageSize = 2048;

absl::Status NotConverged() {
  return absl::InternalError("eigenvalues: the iteration did not converge");
}

absl::StatusOr<std::vector<double>> InOneCall(blasint n, std::vector<double> a) {
  openblas_set_num_threads(1);  // the pool decides how many cores are used
  std::vector<double> values(n);
  std::vector<double> work(2 * int64_t{n} + 1 + 64 * int64_t{n});
  const auto work_size = static_cast<blasint>(work.size());
  blasint iwork = 0;
  const blasint iwork_size = 1;
  blasint info = 0;
  // LAPACK counts columns first: our lower triangle is its upper one.
  dsyevd_("N", "U", &n, a.data(), &n, values.data(), work.data(), &work_size, &iwork, &iwork_size,
          &info, 1, 1);
  if (info != 0) return NotConverged();
  return values;
}

}  // namespace

absl::StatusOr<std::vector<double>> SymmetricEigenvalues(int64_t n, const double* matrix,
                                                         const Stream* stream) {
  if (n == 0) return std::vector<double>();
  const auto size = static_cast<blasint>(n);
  std::vector<double> a(matrix, matrix + n * n);
  if (n < kTwoStageSize) return InOneCall(size, std::move(a));

  absl::StatusOr<Tridiagonal> reduced = ReduceToTridiagonal(n, a.data(), stream);
  if (!reduced.ok()) return reduced.status();
  blasint info = 0;
  dsterf_(&size, reduced->diagonal.data(), reduced->off_diagonal.data(), &info);
  if (info != 0) return NotConverged();
  return std::move(reduced->diagonal);
}

}  // namespace quantd::compute
