#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// Kernels over whole matrices, row-major. All launchers queue on `stream` and return what launching
// said.
namespace quantd::compute {

// `count` elements of 2-byte floats (bfloat16 or IEEE half) or float32 to float64.
cudaError_t LaunchWidenBf16(cudaStream_t stream, const void* from, int64_t count, double* to);
cudaError_t LaunchWidenF16(cudaStream_t stream, const void* from, int64_t count, double* to);
cudaError_t LaunchWidenF32(cudaStream_t stream, const float* from, int64_t count, double* to);

// to[i, j] = from[rows[i], columns[j]]; a null list stands for 0, 1, 2, ...
cudaError_t LaunchGather(cudaStream_t stream, const double* from, int64_t from_cols,
                         const int64_t* rows, int64_t row_count, const int64_t* columns,
                         int64_t column_count, double* to);

// values[i] /= divisor
cudaError_t LaunchDivide(cudaStream_t stream, int64_t count, double divisor, double* values);

// The blocks on the diagonal of a stack of `width` x `width` matrices (cols / width of them), one
// below the other: to[row, j] = from[row, row / size * size % width + j], j < size.
cudaError_t LaunchDiagonalBlocks(cudaStream_t stream, const double* from, int64_t cols,
                                 int64_t width, int64_t size, double* to);

// to[i] = from[i, i]
cudaError_t LaunchDiagonal(cudaStream_t stream, int64_t size, const double* from, double* to);

// to[c] = sum over rows of from[r, c]^2 / rows, in a fixed order. `partial`: kColumnSlices x cols.
constexpr int64_t kColumnSlices = 32;
cudaError_t LaunchColumnEnergies(cudaStream_t stream, int64_t rows, int64_t cols,
                                 const double* from, double* partial, double* to);
// to[r] = sum over columns of from[r, c]^2 / cols, in a fixed order.
cudaError_t LaunchRowEnergies(cudaStream_t stream, int64_t rows, int64_t cols, const double* from,
                              double* to);

// to = from + added I in the lower triangle, 0 above it. Row-major, size x size.
cudaError_t LaunchLowerPlusDiagonal(cudaStream_t stream, int64_t size, const double* from,
                                    double added, double* to);
// Zeros above the diagonal.
cudaError_t LaunchClearUpper(cudaStream_t stream, int64_t size, double* matrix);

// The least row-major index i * size + j, j < i, whose entry differs from its mirror by more than
// `relative` of `scale`, or size * size. `scale` is the larger of the two diagonal entries, or with
// `geometric` the larger of their geometric mean and the entry itself. NaN differs. `found`: one
// element on the device.
cudaError_t LaunchFindAsymmetry(cudaStream_t stream, int64_t size, const double* matrix,
                                double relative, bool geometric, unsigned long long* found);

}  // namespace quantd::compute
