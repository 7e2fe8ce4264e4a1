#include <algorithm>

#include "compute/backend/cuda/lattice_codes_kernels.h"
#include "compute/coding/token_alphabet.h"

namespace quantd::compute {
namespace {

constexpr int kThreads = 256;
constexpr int kSquare = 32;
constexpr int kSquareRows = 8;
constexpr int kSplit = TokenAlphabet::kMaxSplit;

static_assert(kFinestTokens == 1 + (1 << kSplit) + 4 * (TokenAlphabet::kMaxExponent + 1 - kSplit));

// One block a column.
__global__ void CodeSquaresKernel(int64_t rows, const int32_t* codes, int64_t stride,
                                  double* squares) {
  __shared__ double of_warp[kThreads / 32];
  const int32_t* const column = codes + blockIdx.x * stride;
  double sum = 0.0;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) {
    const double z = column[r];
    sum += z * z;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, offset);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all = 0.0;
  for (const double each : of_warp) all += each;
  squares[blockIdx.x] = all;
}

// One block a column, which it counts in shared memory; integers add up in any order.
__global__ void CountTokensKernel(int64_t rows, const int32_t* codes, int64_t stride,
                                  const uint8_t* bins, uint32_t* counts) {
  __shared__ uint32_t of_column[kFinestTokens];
  for (int t = threadIdx.x; t < kFinestTokens; t += kThreads) of_column[t] = 0;
  __syncthreads();
  const TokenAlphabet finest(kSplit);
  const int32_t* const column = codes + blockIdx.x * stride;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) {
    atomicAdd(&of_column[finest.TokenOf(TokenAlphabet::Zigzag(column[r]))], 1u);
  }
  __syncthreads();
  uint32_t* const of_bin = counts + int64_t{bins[blockIdx.x]} * kFinestTokens;
  for (int t = threadIdx.x; t < kFinestTokens; t += kThreads) {
    if (of_column[t] > 0) atomicAdd(&of_bin[t], of_column[t]);
  }
}

// One block a column.
__global__ void ListLargeCodesKernel(int64_t rows, const int32_t* codes, int64_t stride,
                                     int64_t capacity, int32_t* large, uint32_t* count) {
  const int32_t* const column = codes + blockIdx.x * stride;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) {
    if (!IsLargeValue(column[r])) continue;
    const uint32_t place = atomicAdd(count, 1u);
    if (place < capacity) large[place] = column[r];
  }
}

__global__ void RowMajorKernel(int64_t rows, int64_t cols, const int32_t* codes, int64_t stride,
                               int32_t* to) {
  __shared__ int32_t square[kSquare][kSquare + 1];
  const int64_t c0 = int64_t{blockIdx.x} * kSquare;
  for (int64_t r0 = int64_t{blockIdx.y} * kSquare; r0 < rows; r0 += int64_t{gridDim.y} * kSquare) {
    for (int k = threadIdx.y; k < kSquare; k += kSquareRows) {
      if (c0 + k < cols && r0 + threadIdx.x < rows) {
        square[k][threadIdx.x] = codes[(c0 + k) * stride + r0 + threadIdx.x];
      }
    }
    __syncthreads();
    for (int k = threadIdx.y; k < kSquare; k += kSquareRows) {
      if (r0 + k < rows && c0 + threadIdx.x < cols) {
        to[(r0 + k) * cols + c0 + threadIdx.x] = square[threadIdx.x][k];
      }
    }
    __syncthreads();
  }
}

unsigned CeilDiv(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace

cudaError_t LaunchCodeSquares(cudaStream_t stream, int64_t rows, int64_t cols, const int32_t* codes,
                              int64_t stride, double* squares) {
  if (cols == 0) return cudaSuccess;
  CodeSquaresKernel<<<static_cast<unsigned>(cols), kThreads, 0, stream>>>(rows, codes, stride,
                                                                          squares);
  return cudaGetLastError();
}

cudaError_t LaunchCountTokens(cudaStream_t stream, int64_t rows, int64_t cols, const int32_t* codes,
                              int64_t stride, const uint8_t* bins, uint32_t* counts) {
  if (cols == 0) return cudaSuccess;
  CountTokensKernel<<<static_cast<unsigned>(cols), kThreads, 0, stream>>>(rows, codes, stride, bins,
                                                                          counts);
  return cudaGetLastError();
}

cudaError_t LaunchListLargeCodes(cudaStream_t stream, int64_t rows, int64_t cols,
                                 const int32_t* codes, int64_t stride, int64_t capacity,
                                 int32_t* large, uint32_t* count) {
  if (cols == 0) return cudaSuccess;
  ListLargeCodesKernel<<<static_cast<unsigned>(cols), kThreads, 0, stream>>>(
      rows, codes, stride, capacity, large, count);
  return cudaGetLastError();
}

cudaError_t LaunchRowMajorCodes(cudaStream_t stream, int64_t rows, int64_t cols,
                                const int32_t* codes, int64_t stride, int32_t* to) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  const dim3 grid(CeilDiv(cols, kSquare), std::min(CeilDiv(rows, kSquare), 32768u));
  RowMajorKernel<<<grid, dim3(kSquare, kSquareRows), 0, stream>>>(rows, cols, codes, stride, to);
  return cudaGetLastError();
}

}  // namespace quantd::compute
