#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// Kernels around WaterSIC's matrices, which are stored with one weight column a row, C x R. All
// pointers are to the device.
namespace quantd::compute {

// to (cols x rows) = from^T (rows x cols), or += with `add`.
cudaError_t LaunchTranspose(cudaStream_t stream, int64_t rows, int64_t cols, const double* from,
                            bool add, double* to);

// to = a + factor b, elements.
cudaError_t LaunchAddScaled(cudaStream_t stream, int64_t count, const double* a, double factor,
                            const double* b, double* to);

// to[0] = sum a_i b_i in a fixed order. `partial`: kDotSlices.
inline constexpr int64_t kDotSlices = 1024;
cudaError_t LaunchDot(cudaStream_t stream, int64_t count, const double* a, const double* b,
                      double* partial, double* to);

// to[r, columns[i]] = row[r] column[i] codes[i, r] of codes live x rows; `columns` may be null for
// 0, 1, 2, ... What is in no column stays.
cudaError_t LaunchDecodeLattice(cudaStream_t stream, int64_t live, int64_t rows,
                                const int32_t* codes, const double* row, const double* column,
                                const int64_t* columns, int64_t cols, double* to);

}  // namespace quantd::compute
