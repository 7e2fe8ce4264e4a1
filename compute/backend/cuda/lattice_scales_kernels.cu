#include <algorithm>

#include "compute/backend/cuda/lattice_scales_kernels.h"

namespace quantd::compute {
namespace {

constexpr int kThreads = 256;

unsigned CeilDiv(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

__global__ void ScaleCodesKernel(int64_t rows, int64_t cols, const int32_t* codes,
                                 const double* column, const double* weight, double* to) {
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (r >= rows) return;
  const double root = weight == nullptr ? 1.0 : sqrt(weight[r]);
  for (int64_t c = blockIdx.y; c < cols; c += gridDim.y) {
    const double scale = column == nullptr ? root : root * column[c];
    to[c * rows + r] = scale * codes[c * rows + r];
  }
}

// Slice y of the columns.
__global__ void SumRowsKernel(int64_t rows, int64_t cols, const int32_t* codes,
                              const double* column, const double* matrix, double* partial) {
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (r >= rows) return;
  double sum = 0.0;
  for (int64_t c = blockIdx.y; c < cols; c += kRowSumSlices) {
    sum += column[c] * codes[c * rows + r] * matrix[c * rows + r];
  }
  partial[blockIdx.y * rows + r] = sum;
}

__global__ void SumSlicesKernel(int64_t rows, const double* partial, double* to) {
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (r >= rows) return;
  double sum = 0.0;
  for (int64_t slice = 0; slice < kRowSumSlices; ++slice) sum += partial[slice * rows + r];
  to[r] = sum;
}

// One block a column.
__global__ void SumColumnsKernel(int64_t rows, const int32_t* codes, const double* column,
                                 const double* row, const double* matrix, double* to) {
  __shared__ double of_warp[kThreads / 32];
  const int64_t begin = int64_t{blockIdx.x} * rows;
  double sum = 0.0;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) {
    sum += row[r] * codes[begin + r] * matrix[begin + r];
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, offset);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all = 0.0;
  for (const double each : of_warp) all += each;
  to[blockIdx.x] = column[blockIdx.x] * all;
}

// One block a square on or below the diagonal, which also writes its mirror.
constexpr int kSquare = 32;

__global__ void ScaleSymmetricKernel(int64_t size, const double* scale, const double* matrix,
                                     double* to) {
  if (blockIdx.x > blockIdx.y) return;
  __shared__ double square[kSquare][kSquare + 1];
  const int64_t row0 = int64_t{blockIdx.y} * kSquare;
  const int64_t col0 = int64_t{blockIdx.x} * kSquare;
  const int lane = static_cast<int>(threadIdx.x) % kSquare;
  const int first = static_cast<int>(threadIdx.x) / kSquare;
  constexpr int kStep = kThreads / kSquare;
  for (int r = first; r < kSquare; r += kStep) {
    const int64_t i = row0 + r;
    const int64_t j = col0 + lane;
    if (i >= size || j > i) continue;
    const double value = to[i * size + j] * (scale[i] * scale[j] * matrix[i * size + j]);
    to[i * size + j] = value;
    square[r][lane] = value;
  }
  __syncthreads();
  for (int r = first; r < kSquare; r += kStep) {
    const int64_t i = col0 + r;
    const int64_t j = row0 + lane;
    if (j < size && i < j) to[i * size + j] = square[lane][r];
  }
}

__global__ void AddToDiagonalKernel(int64_t size, double added, double* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < size) to[i * (size + 1)] += added;
}

}  // namespace

cudaError_t LaunchScaleCodes(cudaStream_t stream, int64_t rows, int64_t cols, const int32_t* codes,
                             const double* column, const double* weight, double* to) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  const dim3 grid(CeilDiv(rows, kThreads), static_cast<unsigned>(std::min<int64_t>(cols, 1024)));
  ScaleCodesKernel<<<grid, kThreads, 0, stream>>>(rows, cols, codes, column, weight, to);
  return cudaGetLastError();
}

cudaError_t LaunchSumRows(cudaStream_t stream, int64_t rows, int64_t cols, const int32_t* codes,
                          const double* column, const double* matrix, double* partial, double* to) {
  if (rows == 0) return cudaSuccess;
  const unsigned blocks = CeilDiv(rows, kThreads);
  SumRowsKernel<<<dim3(blocks, kRowSumSlices), kThreads, 0, stream>>>(rows, cols, codes, column,
                                                                      matrix, partial);
  SumSlicesKernel<<<blocks, kThreads, 0, stream>>>(rows, partial, to);
  return cudaGetLastError();
}

cudaError_t LaunchSumColumns(cudaStream_t stream, int64_t rows, int64_t cols, const int32_t* codes,
                             const double* column, const double* row, const double* matrix,
                             double* to) {
  if (cols == 0) return cudaSuccess;
  SumColumnsKernel<<<static_cast<unsigned>(cols), kThreads, 0, stream>>>(rows, codes, column, row,
                                                                         matrix, to);
  return cudaGetLastError();
}

cudaError_t LaunchScaleSymmetric(cudaStream_t stream, int64_t size, const double* scale,
                                 const double* matrix, double* to) {
  if (size == 0) return cudaSuccess;
  const unsigned squares = CeilDiv(size, kSquare);
  ScaleSymmetricKernel<<<dim3(squares, squares), kThreads, 0, stream>>>(size, scale, matrix, to);
  return cudaGetLastError();
}

cudaError_t LaunchAddToDiagonal(cudaStream_t stream, int64_t size, double added, double* to) {
  if (size == 0) return cudaSuccess;
  AddToDiagonalKernel<<<CeilDiv(size, kThreads), kThreads, 0, stream>>>(size, added, to);
  return cudaGetLastError();
}

}  // namespace quantd::compute
