#include "compute/backend/cpu/eigenvalues.h"

#include <cblas.h>

#include <cstddef>

#include "compute/backend/cpu/band_reduction.h"

// OpenBLAS carries LAPACK, but Debian ships no C header for it. A Fortran compiler appends the
// lengths of the strings.
extern "C" {
// NOLINTBEGIN(readability-identifier-naming): the names in LAPACK
void dsyevd_(const char* jobz, const char* uplo, const blasint* n, double* a, const blasint* lda,
             double* w, double* work, const blasint* lwork, blasint* iwork, const blasint* liwork,
             blasint* info, std::size_t jobz_length, std::size_t uplo_length);
void dsbevd_2stage_(const char* jobz, const char* uplo, const blasint* n, const blasint* kd,
                    double* ab, const blasint* ldab, double* w, double* z, const blasint* ldz,
                    double* work, const blasint* lwork, blasint* iwork, const blasint* liwork,
                    blasint* info, std::size_t jobz_length, std::size_t uplo_length);
// NOLINTEND(readability-identifier-naming)
}

namespace quantd::compute {
namespace {

// From here on two stages are faster, and a cancelled layer should not wait for LAPACK, which
// nothing interrupts: of the two stages it does the second alone, a small part of the work.
constexpr int64_t kTwoStageSize = 1024;
constexpr int64_t kBand = 32;

// Asks `routine` (which takes work, its size, iwork, its size) what it needs, and runs it.
template <typename Routine>
void RunWithWorkspace(const Routine& routine, const blasint& info) {
  double work_size = 0.0;
  blasint iwork_size = 0;
  routine(&work_size, -1, &iwork_size, -1);
  if (info != 0) return;
  std::vector<double> work(static_cast<size_t>(work_size) + 1);
  std::vector<blasint> iwork(static_cast<size_t>(iwork_size) + 1);
  routine(work.data(), static_cast<blasint>(work.size()), iwork.data(),
          static_cast<blasint>(iwork.size()));
}

}  // namespace

std::vector<double> SymmetricEigenvalues(WorkerPool& pool, int64_t n, const double* matrix,
                                         const Stream* stream) {
  if (n == 0) return {};
  openblas_set_num_threads(1);  // the pool decides how many cores are used
  const auto size = static_cast<blasint>(n);
  std::vector<double> a(matrix, matrix + n * n);
  std::vector<double> values(n);
  blasint info = 0;
  if (n < kTwoStageSize) {
    // LAPACK counts columns first: our lower triangle is its upper one.
    RunWithWorkspace(
        [&](double* work, blasint lwork, blasint* iwork, blasint liwork) {
          dsyevd_("N", "U", &size, a.data(), &size, values.data(), work, &lwork, iwork, &liwork,
                  &info, 1, 1);
        },
        info);
  } else {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < i; ++j) a[j * n + i] = a[i * n + j];
    }
    std::vector<double> band = ReduceToBand(pool, n, kBand, a.data(), stream);
    if (band.empty()) return {};
    const blasint kd = kBand;
    const blasint ldab = kBand + 1;
    const blasint one = 1;
    double z = 0.0;
    RunWithWorkspace(
        [&](double* work, blasint lwork, blasint* iwork, blasint liwork) {
          dsbevd_2stage_("N", "L", &size, &kd, band.data(), &ldab, values.data(), &z, &one, work,
                         &lwork, iwork, &liwork, &info, 1, 1);
        },
        info);
  }
  if (info != 0) return {};
  return values;
}

}  // namespace quantd::compute
