#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// Kernels over rows [first, first + rows) of integer codes that are stored one column behind the
// other: `codes` points to row `first` of column 0, and columns are `stride` apart. All pointers
// are to the device.
namespace quantd::compute {

// squares[c] = the sum of squares of column c, in a fixed order.
cudaError_t LaunchCodeSquares(cudaStream_t stream, int64_t rows, int64_t cols, const int32_t* codes,
                              int64_t stride, double* squares);

// counts[bins[c], token] += how often the tokens of the finest alphabet (TokenAlphabet) occur in
// column c. `counts`: any number of bins x kFinestTokens, zeros before.
inline constexpr int kFinestTokens = 1061;
cudaError_t LaunchCountTokens(cudaStream_t stream, int64_t rows, int64_t cols, const int32_t* codes,
                              int64_t stride, const uint8_t* bins, uint32_t* counts);

// The values that share a token of the finest alphabet with others, in any order: their number is
// added to *count, the first `capacity` of them that come go to `large`.
cudaError_t LaunchListLargeCodes(cudaStream_t stream, int64_t rows, int64_t cols,
                                 const int32_t* codes, int64_t stride, int64_t capacity,
                                 int32_t* large, uint32_t* count);

// to[r, c], rows x cols row-major.
cudaError_t LaunchRowMajorCodes(cudaStream_t stream, int64_t rows, int64_t cols,
                                const int32_t* codes, int64_t stride, int32_t* to);

}  // namespace quantd::compute
