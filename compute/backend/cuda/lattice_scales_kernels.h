#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// Kernels that fit scales to WaterSIC's codes Z, which are stored C x R, a weight column a row. All
// pointers are to the device; sums run in a fixed order.
namespace quantd::compute {

// to[c, r] = column[c] sqrt(weight[r]) codes[c, r]; a null list stands for ones.
cudaError_t LaunchScaleCodes(cudaStream_t stream, int64_t rows, int64_t cols, const int32_t* codes,
                             const double* column, const double* weight, double* to);

// to[r] = sum_c column[c] codes[c, r] matrix[c, r]. `partial`: kRowSumSlices x rows.
inline constexpr int64_t kRowSumSlices = 32;
cudaError_t LaunchSumRows(cudaStream_t stream, int64_t rows, int64_t cols, const int32_t* codes,
                          const double* column, const double* matrix, double* partial, double* to);

// to[c] = column[c] sum_r row[r] codes[c, r] matrix[c, r].
cudaError_t LaunchSumColumns(cudaStream_t stream, int64_t rows, int64_t cols, const int32_t* codes,
                             const double* column, const double* row, const double* matrix,
                             double* to);

// to[i, j] *= scale[i] scale[j] matrix[i, j] for j <= i, and to[j, i] the same; size x size.
cudaError_t LaunchScaleSymmetric(cudaStream_t stream, int64_t size, const double* scale,
                                 const double* matrix, double* to);

// to[i, i] += added
cudaError_t LaunchAddToDiagonal(cudaStream_t stream, int64_t size, double added, double* to);

}  // namespace quantd::compute
