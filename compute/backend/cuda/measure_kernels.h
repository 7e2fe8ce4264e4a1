#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// Sums behind the error report over row-major float64 matrices, in two stages and a fixed order.
// All launchers queue on `stream` and return what launching said.
namespace quantd::compute {

// First stages over all elements of a matrix end in this many partial results, to be combined one
// after the other.
constexpr int kPartials = 1024;

// to = a - b; `b` null: a. `to` may be null. partial: kPartials largest magnitudes, then kPartials
// sums of squares.
cudaError_t LaunchDifference(cudaStream_t stream, int64_t count, const double* a, const double* b,
                             double* to, double* partial);
// partial: kPartials sums of (a - b)^2, then kPartials sums of a^2.
cudaError_t LaunchSquaredDistance(cudaStream_t stream, int64_t count, const double* a,
                                  const double* b, double* partial);
// partial: kPartials sums of a b.
cudaError_t LaunchInnerProduct(cudaStream_t stream, int64_t count, const double* a, const double* b,
                               double* partial);

// Sums of a b by row and by column.
// row_partial: rows x ColumnChunks(cols), column_partial: RowChunks(rows) x cols.
constexpr int64_t kRowChunk = 64;
int64_t RowChunks(int64_t rows);
int64_t ColumnChunks(int64_t cols);
cudaError_t LaunchProductSums(cudaStream_t stream, int64_t rows, int64_t cols, const double* a,
                              const double* b, double* row_partial, double* column_partial);
// The second stages: to[r] = the sum of row r of `partial`, rows x chunks, and to[c] = the sum of
// column c of `partial`, chunks x cols.
cudaError_t LaunchFinishRowSums(cudaStream_t stream, int64_t rows, int64_t chunks,
                                const double* partial, double* to);
cudaError_t LaunchFinishColumnSums(cudaStream_t stream, int64_t cols, int64_t chunks,
                                   const double* partial, double* to);

}  // namespace quantd::compute
