#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

// What surrounds the half-precision product of split_product.h. Row-major; `cols` is a multiple of
// kSplitAlignment. All launchers queue on `stream` and return what launching said.
namespace quantd::compute {

constexpr int64_t kSplitAlignment = 8;
// Low parts are stored this many times larger, so that they are no subnormal numbers.
constexpr float kLowScale = 2048.0f;

// root[i] = sqrt(M_ii), 0 where M_ii is not positive.
cudaError_t LaunchMomentRoots(cudaStream_t stream, int64_t size, const double* moment,
                              double* root);

// K_ij = M_ij / (root_i root_j) off the diagonal, 0 on it, as high + low / kLowScale; M is read in
// its lower triangle alone, but for squares on the diagonal. `low` may be null: then high is
// rounded at random (by i and j), so that errors do not add up. *irregular becomes 1 where that
// does not stand for M: an entry in a row without a positive diagonal, or an |K_ij| beyond 2.
// With blocks of `whole` < size columns, entries below the diagonal blocks are doubled and those
// above them not written.
cudaError_t LaunchSplitCorrelation(cudaStream_t stream, int64_t size, const double* moment,
                                   const double* root, int64_t whole, __half* high, __half* low,
                                   int* irregular);

// By row of d = a - b (b null: a): e = d root, energy = sum of e^2, largest = max |d|,
// squares = sum of d^2; scale a power of two that is at least max |e|, half = e / scale.
constexpr int64_t kMostScaledCols = 48 * 1024;  // what a multiprocessor can keep
struct ScaledRows {
  __half* half;   // rows x cols
  double* scale;  // rows
  double* energy;
  double* largest;
  double* squares;
};
cudaError_t LaunchScaleRows(cudaStream_t stream, int64_t rows, int64_t cols, const double* a,
                            const double* b, const double* root, const ScaledRows& to);

// First stage of the sums by row and column of e_rc (e_rc + scale_r P_rc) with e = scale half. All
// of it from the halves: where the two parts cancel, so do their rounding errors. row_partial: rows
// x SplitColumnChunks(cols), column_partial: RowChunks(rows) x cols.
int64_t SplitColumnChunks(int64_t cols);
cudaError_t LaunchSplitProductSums(cudaStream_t stream, int64_t rows, int64_t cols,
                                   const float* product, const __half* half, const double* scale,
                                   double* row_partial, double* column_partial);
// totals: the sum of energy, the largest of largest and the sum of squares over `rows` rows.
cudaError_t LaunchSumRows(cudaStream_t stream, int64_t rows, const ScaledRows& from,
                          double* totals);

// high + low / kLowScale = from / scale by rows, scale a power of two that is at least the largest
// magnitude of its row.
cudaError_t LaunchSplitRows(cudaStream_t stream, int64_t rows, int64_t cols, const double* from,
                            __half* high, __half* low, double* scale);
// outputs[t, r] = product[t, r] token_scale[t] row_scale[r].
cudaError_t LaunchScaleOutputs(cudaStream_t stream, int64_t tokens, int64_t rows,
                               const float* product, const double* token_scale,
                               const double* row_scale, double* outputs);

}  // namespace quantd::compute
