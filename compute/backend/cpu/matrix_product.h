#pragma once

#include <cstdint>

// Products of row-major matrices in the calling thread; callers split work over the WorkerPool by
// tiles. Why OpenBLAS: docs/adr/0002-cpu-products.md. Thread-safe.
namespace quantd::compute {

// c (m x n) = a (m x k) b (k x n).
void Multiply(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
              int64_t ldb, double* c, int64_t ldc);
// c (m x n) = a (m x k) b^T, b being n x k.
void MultiplyTransposed(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda,
                        const double* b, int64_t ldb, double* c, int64_t ldc);
// c (m x n) = a^T b, a being k x m and b k x n.
void TransposedMultiply(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda,
                        const double* b, int64_t ldb, double* c, int64_t ldc);
// c (m x n) -= a^T b, a being k x m and b k x n.
void SubtractTransposedMultiply(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda,
                                const double* b, int64_t ldb, double* c, int64_t ldc);
// c (m x n) -= a b^T, a being m x k and b n x k.
void SubtractMultiplyTransposed(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda,
                                const double* b, int64_t ldb, double* c, int64_t ldc);
// b (n x m) = l^-1 b and b (m x n) = b l^-T for a lower triangle l (n x n) without zeros on its
// diagonal; what is above the diagonal is not read.
void SolveLower(int64_t n, int64_t m, const double* l, int64_t ldl, double* b, int64_t ldb);
void SolveLowerTransposedRight(int64_t m, int64_t n, const double* l, int64_t ldl, double* b,
                               int64_t ldb);
// b (m x n) = b l^-1.
void SolveLowerRight(int64_t m, int64_t n, const double* l, int64_t ldl, double* b, int64_t ldb);
// b (n x m) = l^-T b.
void SolveLowerTransposed(int64_t n, int64_t m, const double* l, int64_t ldl, double* b,
                          int64_t ldb);
// The lower triangle of c (n x n) = beta c + a^T a, a being k x n.
void GramLower(int64_t n, int64_t k, const double* a, int64_t lda, double beta, double* c,
               int64_t ldc);

}  // namespace quantd::compute
