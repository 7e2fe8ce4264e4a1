#include "compute/backend/cpu/matrix_product.h"

#include <cblas.h>

namespace quantd::compute {
namespace {

blasint Int(int64_t value) { return static_cast<blasint>(value); }

// OpenBLAS's own threads would fight with the pool's. Set before the first product.
void UseOneThread() {
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace

void Multiply(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
              int64_t ldb, double* c, int64_t ldc) {
  UseOneThread();
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, Int(m), Int(n), Int(k), 1.0, a, Int(lda),
              b, Int(ldb), 0.0, c, Int(ldc));
}

void MultiplyTransposed(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda,
                        const double* b, int64_t ldb, double* c, int64_t ldc) {
  UseOneThread();
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, Int(m), Int(n), Int(k), 1.0, a, Int(lda), b,
              Int(ldb), 0.0, c, Int(ldc));
}

void TransposedMultiply(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda,
                        const double* b, int64_t ldb, double* c, int64_t ldc) {
  UseOneThread();
  cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, Int(m), Int(n), Int(k), 1.0, a, Int(lda), b,
              Int(ldb), 0.0, c, Int(ldc));
}

void SubtractTransposedMultiply(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda,
                                const double* b, int64_t ldb, double* c, int64_t ldc) {
  UseOneThread();
  cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, Int(m), Int(n), Int(k), -1.0, a, Int(lda), b,
              Int(ldb), 1.0, c, Int(ldc));
}

void SubtractMultiplyTransposed(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda,
                                const double* b, int64_t ldb, double* c, int64_t ldc) {
  UseOneThread();
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, Int(m), Int(n), Int(k), -1.0, a, Int(lda), b,
              Int(ldb), 1.0, c, Int(ldc));
}

void SolveLower(int64_t n, int64_t m, const double* l, int64_t ldl, double* b, int64_t ldb) {
  UseOneThread();
  cblas_dtrsm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, Int(n), Int(m), 1.0,
              l, Int(ldl), b, Int(ldb));
}

void SolveLowerTransposedRight(int64_t m, int64_t n, const double* l, int64_t ldl, double* b,
                               int64_t ldb) {
  UseOneThread();
  cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, Int(m), Int(n), 1.0,
              l, Int(ldl), b, Int(ldb));
}

void SolveLowerRight(int64_t m, int64_t n, const double* l, int64_t ldl, double* b, int64_t ldb) {
  UseOneThread();
  cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, Int(m), Int(n),
              1.0, l, Int(ldl), b, Int(ldb));
}

void SolveLowerTransposed(int64_t n, int64_t m, const double* l, int64_t ldl, double* b,
                          int64_t ldb) {
  UseOneThread();
  cblas_dtrsm(CblasRowMajor, CblasLeft, CblasLower, CblasTrans, CblasNonUnit, Int(n), Int(m), 1.0,
              l, Int(ldl), b, Int(ldb));
}

void GramLower(int64_t n, int64_t k, const double* a, int64_t lda, double beta, double* c,
               int64_t ldc) {
  UseOneThread();
  cblas_dsyrk(CblasRowMajor, CblasLower, CblasTrans, Int(n), Int(k), 1.0, a, Int(lda), beta, c,
              Int(ldc));
}

}  // namespace quantd::compute
