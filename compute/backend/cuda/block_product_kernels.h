#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// Products of row-major float64 matrices with a stack of blocks, C/B x B x B: every row x becomes
// T x. All launchers queue on `stream` and return what launching said.
namespace quantd::compute {

// to = from T^T by blocks. `from` and `to` do not overlap.
cudaError_t LaunchApplyBlocks(cudaStream_t stream, int64_t block_size, const double* blocks,
                              int64_t rows, int64_t cols, const double* from, double* to);
cudaError_t LaunchApplyBlocks(cudaStream_t stream, int64_t block_size, const float* blocks,
                              int64_t rows, int64_t cols, const double* from, double* to);
// to = from T by blocks.
cudaError_t LaunchApplyTransposedBlocks(cudaStream_t stream, int64_t block_size,
                                        const float* blocks, int64_t rows, int64_t cols,
                                        const double* from, double* to);

// *amax = the largest magnitude of from T^T, one double on the device.
cudaError_t LaunchTransformedAmax(cudaStream_t stream, int64_t block_size, const double* blocks,
                                  int64_t rows, int64_t cols, const double* from, double* amax);

// to[c] = sum over the rows of (from T^T)[r, c]^2, in a fixed order. `partial`: RowBlockCount(rows)
// x cols.
int64_t RowBlockCount(int64_t rows);
cudaError_t LaunchTransformedColumnSquares(cudaStream_t stream, int64_t block_size,
                                           const double* blocks, int64_t rows, int64_t cols,
                                           const double* from, double* partial, double* to);

// to[c] = (T M T^T)_cc by blocks, M a stack like T.
cudaError_t LaunchTransformedDiagonal(cudaStream_t stream, int64_t block_size, const float* blocks,
                                      int64_t cols, const double* moment, double* to);
// to[c] = M_cc.
cudaError_t LaunchBlockDiagonal(cudaStream_t stream, int64_t block_size, int64_t cols,
                                const double* moment, double* to);

}  // namespace quantd::compute
