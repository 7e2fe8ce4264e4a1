#include "compute/backend/cpu/tridiagonal.h"

#include <cblas.h>

#include <algorithm>
#include <cstddef>

// LAPACK's own steps, which OpenBLAS carries and Debian ships no C header for. A Fortran compiler
// appends the lengths of the strings.
// NOLINTBEGIN(readability-identifier-naming): names in LAPACK
extern "C" {
// A = L Q with Q = H(k) ... H(1): L and, right of its diagonal, the vectors of the reflectors.
void dgelqf_(const blasint* m, const blasint* n, double* a, const blasint* lda, double* tau,
             double* work, const blasint* lwork, blasint* info);
// T of the block reflector H(1) ... H(k) = I - V^T T V.
void dlarft_(const char* direct, const char* storev, const blasint* n, const blasint* k,
             const double* v, const blasint* ldv, const double* tau, double* t, const blasint* ldt,
             std::size_t direct_length, std::size_t storev_length);
// One step of a sweep that chases the bulge of a column down the band.
void dsb2st_kernels_(const char* uplo, const blasint* wantz, const blasint* ttype,
                     const blasint* st, const blasint* ed, const blasint* sweep, const blasint* n,
                     const blasint* nb, const blasint* ib, double* a, const blasint* lda, double* v,
                     double* tau, const blasint* ldvt, double* work, std::size_t uplo_length);
}
// NOLINTEND(readability-identifier-naming)

namespace quantd::compute {
namespace {

// Diagonals above the main one that the first stage leaves. More make its products faster and the
// second stage slower.
constexpr blasint kBand = 32;

// The first stage. LAPACK counts columns first: the lower triangle of our rows is its upper one.
class BandReduction {
 public:
  BandReduction(blasint n, double* a) : n_(n), a_(a), small_(4 * kSquare), wide_(2 * kBand * n) {}

  // Leaves a band in the upper triangle.
  absl::Status Run(const Stream* stream) {
    for (blasint i = 0; i < n_ - kBand; i += kBand) {
      const blasint rest = n_ - i - kBand;
      const blasint reflectors = std::min(rest, kBand);
      double* const panel = At(i, i + kBand);
      double* const trailing = At(i + kBand, i + kBand);
      Factor(rest, reflectors, panel);
      // From both sides: A - V^T W - W^T V, where W = S A - 1/2 (S A S^T) V and S = T^T V.
      cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, reflectors, rest, reflectors, 1.0, t(),
                  kBand, panel, n_, 0.0, s(), kBand);
      cblas_dsymm(CblasColMajor, CblasRight, CblasUpper, reflectors, rest, 1.0, trailing, n_, s(),
                  kBand, 0.0, w(), kBand);
      if (absl::Status status = Check(stream); !status.ok()) return status;
      cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, reflectors, reflectors, rest, 1.0, w(),
                  kBand, s(), kBand, 0.0, product(), kBand);
      cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, reflectors, rest, reflectors, -0.5,
                  product(), kBand, panel, n_, 1.0, w(), kBand);
      cblas_dsyr2k(CblasColMajor, CblasUpper, CblasTrans, rest, reflectors, -1.0, panel, n_, w(),
                   kBand, 1.0, trailing, n_);
      PutFactor(reflectors, panel);
      if (absl::Status status = Check(stream); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  static constexpr blasint kSquare = kBand * kBand;

  static absl::Status Check(const Stream* stream) {
    return stream == nullptr ? absl::OkStatus() : stream->CheckCancelled();
  }

  double* At(int64_t row, int64_t col) { return a_ + col * n_ + row; }

  // The panel, kBand x rest, becomes V, whose rows start with a 1 on the diagonal; L is put aside.
  void Factor(blasint rest, blasint reflectors, double* panel) {
    double tau[kBand];
    blasint info = 0;
    dgelqf_(&kBand, &rest, panel, &n_, tau, product(), &kSquare, &info);
    for (blasint col = 0; col < reflectors; ++col) {
      double* const column = panel + int64_t{col} * n_;
      for (blasint row = col; row < kBand; ++row) {
        l()[col * kBand + row] = column[row];
        if (row < reflectors) column[row] = row == col ? 1.0 : 0.0;
      }
    }
    dlarft_("F", "R", &rest, &reflectors, panel, &n_, tau, t(), &kBand, 1, 1);
  }

  void PutFactor(blasint reflectors, double* panel) {
    for (blasint col = 0; col < reflectors; ++col) {
      double* const column = panel + int64_t{col} * n_;
      std::copy_n(l() + col * kBand + col, kBand - col, column + col);
    }
  }

  double* l() { return small_.data(); }
  double* t() { return small_.data() + kSquare; }
  double* product() { return small_.data() + 2 * kSquare; }
  double* s() { return wide_.data(); }
  double* w() { return wide_.data() + int64_t{kBand} * n_; }

  const blasint n_;
  double* const a_;
  std::vector<double> small_;  // kBand x kBand each
  std::vector<double> wide_;   // kBand x n each
};

// The second stage: column after column of a band becomes tridiagonal, and what that adds beyond
// the band is chased off its end.
class BulgeChase {
 public:
  // `a`: n x n, of which a band is read.
  BulgeChase(blasint n, const double* a)
      : n_(n), band_(int64_t{kStride} * n, 0.0), vectors_(2 * n), tau_(2 * n), work_(kBand) {
    for (int64_t col = 0; col < n; ++col) {
      const int64_t count = std::min<int64_t>(col, kBand) + 1;
      std::copy_n(a + col * n + col - count + 1, count, Diagonal(col) - count + 1);
    }
  }

  absl::StatusOr<Tridiagonal> Run(const Stream* stream) {
    for (blasint sweep = 1; sweep < n_; ++sweep) {
      if (stream != nullptr) {
        if (absl::Status status = stream->CheckCancelled(); !status.ok()) return status;
      }
      Sweep(sweep);
    }
    Tridiagonal result;
    for (int64_t col = 0; col < n_; ++col) {
      result.diagonal.push_back(*Diagonal(col));
      if (col > 0) result.off_diagonal.push_back(*(Diagonal(col) - 1));
    }
    return result;
  }

 private:
  // Of a column: room for the bulge, the band, the diagonal.
  static constexpr blasint kStride = 2 * kBand + 1;

  double* Diagonal(int64_t col) { return band_.data() + col * kStride + 2 * kBand; }

  // Rows and columns count from 1 here, as LAPACK's do. The first step (type 1) takes a row to
  // three diagonals, in the block below it. From then on steps in turn carry a block's reflector to
  // the next one, where that makes a bulge (type 2), and take the first row of the bulge away (type
  // 3).
  void Sweep(blasint sweep) {
    constexpr blasint kNoVectors = 0;
    constexpr blasint kUnused = 1;
    for (blasint step = 1;; ++step) {
      const blasint type = step == 1 ? 1 : step % 2 + 2;
      const blasint last = (step + 1) / 2 * kBand + sweep;
      const blasint first = last - kBand + 1;
      const blasint end = std::min(last, n_);
      dsb2st_kernels_("U", &kNoVectors, &type, &first, &end, &sweep, &n_, &kBand, &kUnused,
                      band_.data(), &kStride, vectors_.data(), tau_.data(), &kUnused, work_.data(),
                      1);
      const bool is_at_end = type == 2 ? last >= n_ - 1 : end == n_ && first >= n_ - 1;
      if (is_at_end) return;
    }
  }

  const blasint n_;
  std::vector<double> band_;
  std::vector<double> vectors_;  // reflectors of this sweep and the one before
  std::vector<double> tau_;
  std::vector<double> work_;
};

}  // namespace

absl::StatusOr<Tridiagonal> ReduceToTridiagonal(int64_t n, double* a, const Stream* stream) {
  openblas_set_num_threads(1);  // the pool decides how many cores are used
  const auto size = static_cast<blasint>(n);
  if (absl::Status status = BandReduction(size, a).Run(stream); !status.ok()) return status;
  return BulgeChase(size, a).Run(stream);
}

}  // namespace quantd::compute
