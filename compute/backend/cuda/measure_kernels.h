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
// The second stages: by_row (rows) and by_column (cols).
cudaError_t LaunchFinishProductSums(cudaStream_t stream, int64_t rows, int64_t cols,
                                    const double* row_partial, const double* column_partial,
                                    double* by_row, double* by_column);

}  // namespace quantd::compute
