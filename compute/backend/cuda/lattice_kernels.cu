#include <algorithm>

#include "compute/backend/cuda/lattice_kernels.h"

namespace quantd::compute {
namespace {

constexpr int kSquare = 32;
constexpr int kSquareRows = 8;  // threads of a square's block, in its second dimension
constexpr int kThreads = 256;

unsigned CeilDiv(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

unsigned BlocksFor(int64_t count) {
  return static_cast<unsigned>(std::min<int64_t>(CeilDiv(count, kThreads), 132 * 16));
}

__global__ void TransposeKernel(int64_t rows, int64_t cols, const double* from, bool add,
                                double* to) {
  __shared__ double square[kSquare][kSquare + 1];
  const int64_t c0 = int64_t{blockIdx.x} * kSquare;
  for (int64_t r0 = int64_t{blockIdx.y} * kSquare; r0 < rows; r0 += int64_t{gridDim.y} * kSquare) {
    for (int k = threadIdx.y; k < kSquare; k += kSquareRows) {
      const int64_t r = r0 + k;
      const int64_t c = c0 + threadIdx.x;
      if (r < rows && c < cols) square[k][threadIdx.x] = from[r * cols + c];
    }
    __syncthreads();
    for (int k = threadIdx.y; k < kSquare; k += kSquareRows) {
      const int64_t c = c0 + k;
      const int64_t r = r0 + threadIdx.x;
      if (r >= rows || c >= cols) continue;
      const double before = add ? to[c * rows + r] : 0.0;
      to[c * rows + r] = before + square[threadIdx.x][k];
    }
    __syncthreads();
  }
}

__global__ void AddScaledKernel(int64_t count, const double* a, double factor, const double* b,
                                double* to) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    to[i] = a[i] + factor * b[i];
  }
}

// The sum of all threads' values in thread 0, in a fixed order.
__device__ double SumOverBlock(double value) {
  __shared__ double of_warp[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, offset);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  if (threadIdx.x == 0) {
    for (const double each : of_warp) sum += each;
  }
  return sum;
}

__global__ void DotSlicesKernel(int64_t count, const double* a, const double* b, double* partial) {
  double sum = 0.0;
  const int64_t stride = kDotSlices * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    sum += a[i] * b[i];
  }
  sum = SumOverBlock(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void SumSlicesKernel(const double* partial, double* to) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < kDotSlices; i += kThreads) sum += partial[i];
  sum = SumOverBlock(sum);
  if (threadIdx.x == 0) *to = sum;
}

// Codes come along rows of W, values go along its columns: squares through shared memory.
__global__ void DecodeKernel(int64_t live, int64_t rows, const int32_t* codes, const double* row,
                             const double* column, const int64_t* columns, int64_t cols,
                             double* to) {
  __shared__ int32_t square[kSquare][kSquare + 1];
  const int64_t i0 = int64_t{blockIdx.x} * kSquare;
  const int64_t i = i0 + threadIdx.x;
  const int64_t to_column = i >= live ? 0 : columns == nullptr ? i : columns[i];
  const double scale = i < live ? column[i] : 0.0;
  for (int64_t r0 = int64_t{blockIdx.y} * kSquare; r0 < rows; r0 += int64_t{gridDim.y} * kSquare) {
    for (int k = threadIdx.y; k < kSquare; k += kSquareRows) {
      if (i0 + k < live && r0 + threadIdx.x < rows) {
        square[k][threadIdx.x] = codes[(i0 + k) * rows + r0 + threadIdx.x];
      }
    }
    __syncthreads();
    for (int k = threadIdx.y; k < kSquare; k += kSquareRows) {
      const int64_t r = r0 + k;
      if (r < rows && i < live) to[r * cols + to_column] = row[r] * scale * square[threadIdx.x][k];
    }
    __syncthreads();
  }
}

dim3 SquaresOf(int64_t across, int64_t down) {
  return dim3(CeilDiv(across, kSquare), std::min(CeilDiv(down, kSquare), 32768u));
}

}  // namespace

cudaError_t LaunchTranspose(cudaStream_t stream, int64_t rows, int64_t cols, const double* from,
                            bool add, double* to) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  TransposeKernel<<<SquaresOf(cols, rows), dim3(kSquare, kSquareRows), 0, stream>>>(rows, cols,
                                                                                    from, add, to);
  return cudaGetLastError();
}

cudaError_t LaunchAddScaled(cudaStream_t stream, int64_t count, const double* a, double factor,
                            const double* b, double* to) {
  if (count == 0) return cudaSuccess;
  AddScaledKernel<<<BlocksFor(count), kThreads, 0, stream>>>(count, a, factor, b, to);
  return cudaGetLastError();
}

cudaError_t LaunchDot(cudaStream_t stream, int64_t count, const double* a, const double* b,
                      double* partial, double* to) {
  DotSlicesKernel<<<kDotSlices, kThreads, 0, stream>>>(count, a, b, partial);
  SumSlicesKernel<<<1, kThreads, 0, stream>>>(partial, to);
  return cudaGetLastError();
}

cudaError_t LaunchDecodeLattice(cudaStream_t stream, int64_t live, int64_t rows,
                                const int32_t* codes, const double* row, const double* column,
                                const int64_t* columns, int64_t cols, double* to) {
  if (live == 0 || rows == 0) return cudaSuccess;
  DecodeKernel<<<SquaresOf(live, rows), dim3(kSquare, kSquareRows), 0, stream>>>(
      live, rows, codes, row, column, columns, cols, to);
  return cudaGetLastError();
}

}  // namespace quantd::compute
