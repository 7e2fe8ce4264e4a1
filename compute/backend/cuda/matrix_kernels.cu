#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "compute/backend/cuda/block_reduce.cuh"
#include "compute/backend/cuda/matrix_kernels.h"

namespace quantd::compute {
namespace {

constexpr int kThreads = 256;
constexpr int kSquare = 32;

// Blocks for `count` elements, each thread of which strides over the rest.
unsigned BlocksFor(int64_t count) {
  constexpr int64_t kMost = 132 * 16;
  return static_cast<unsigned>(std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, kMost));
}

__device__ double Widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ double Widen(__half value) { return __half2float(value); }
__device__ double Widen(float value) { return value; }

template <typename T>
__global__ void WidenKernel(const T* from, int64_t count, double* to) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    to[i] = Widen(from[i]);
  }
}

template <typename T>
cudaError_t LaunchWiden(cudaStream_t stream, const T* from, int64_t count, double* to) {
  if (count == 0) return cudaSuccess;
  WidenKernel<<<BlocksFor(count), kThreads, 0, stream>>>(from, count, to);
  return cudaGetLastError();
}

__global__ void GatherKernel(const double* from, int64_t from_cols, const int64_t* rows,
                             int64_t row_count, const int64_t* columns, int64_t column_count,
                             double* to) {
  for (int64_t i = blockIdx.y; i < row_count; i += gridDim.y) {
    const double* row = from + (rows == nullptr ? i : rows[i]) * from_cols;
    for (int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; j < column_count;
         j += int64_t{gridDim.x} * blockDim.x) {
      to[i * column_count + j] = row[columns == nullptr ? j : columns[j]];
    }
  }
}

__global__ void DivideKernel(int64_t count, double divisor, double* values) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    values[i] /= divisor;
  }
}

__global__ void DiagonalBlocksKernel(const double* from, int64_t cols, int64_t width, int64_t size,
                                     double* to) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < cols * size;
       at += stride) {
    const int64_t row = at / size;
    to[at] = from[row * width + row / size * size % width + at % size];
  }
}

__global__ void DiagonalKernel(int64_t size, const double* from, double* to) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) to[i] = from[i * (size + 1)];
}

// Slice y of the rows, so that the order of the sum does not depend on the machine.
__global__ void ColumnSquaresKernel(int64_t rows, int64_t cols, const double* from,
                                    double* partial) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= cols) return;
  double sum = 0.0;
  for (int64_t r = blockIdx.y; r < rows; r += kColumnSlices) {
    const double value = from[r * cols + c];
    sum += value * value;
  }
  partial[blockIdx.y * cols + c] = sum;
}

__global__ void ColumnMeansKernel(int64_t rows, int64_t cols, const double* partial, double* to) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= cols) return;
  double sum = 0.0;
  for (int64_t slice = 0; slice < kColumnSlices; ++slice) sum += partial[slice * cols + c];
  to[c] = sum / static_cast<double>(rows);
}

// One block a row.
__global__ void RowEnergiesKernel(int64_t cols, const double* from, double* to) {
  const double* const row = from + blockIdx.x * cols;
  double sum = 0.0;
  for (int64_t c = threadIdx.x; c < cols; c += kThreads) sum += row[c] * row[c];
  sum = OverBlock(sum, SumOf());
  if (threadIdx.x == 0) to[blockIdx.x] = sum / static_cast<double>(cols);
}

__global__ void LowerPlusDiagonalKernel(int64_t size, const double* from, double added,
                                        double* to) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < size * size;
       at += stride) {
    const int64_t i = at / size;
    const int64_t j = at % size;
    to[at] = j < i ? from[at] : j == i ? from[at] + added : 0.0;
  }
}

__global__ void ClearUpperKernel(int64_t size, double* matrix) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < size * size;
       at += stride) {
    if (at % size > at / size) matrix[at] = 0.0;
  }
}

// One block a square of the lower triangle; the mirrored square goes through shared memory, so that
// both are read along rows.
__global__ void FindAsymmetryKernel(int64_t size, const double* matrix, double relative,
                                    bool geometric, unsigned long long* found) {
  __shared__ double mirror[kSquare][kSquare + 1];
  if (blockIdx.x > blockIdx.y) return;
  const int64_t row0 = int64_t{blockIdx.y} * kSquare;
  const int64_t col0 = int64_t{blockIdx.x} * kSquare;
  for (int k = threadIdx.y; k < kSquare; k += blockDim.y) {
    const int64_t i = col0 + k;
    const int64_t j = row0 + threadIdx.x;
    if (i < size && j < size) mirror[k][threadIdx.x] = matrix[i * size + j];
  }
  __syncthreads();
  for (int k = threadIdx.y; k < kSquare; k += blockDim.y) {
    const int64_t i = row0 + k;
    const int64_t j = col0 + threadIdx.x;
    if (i >= size || j >= i) continue;
    const double value = matrix[i * size + j];
    const double a = matrix[i * (size + 1)];
    const double b = matrix[j * (size + 1)];
    const double scale = geometric ? fmax(sqrt(fabs(a * b)), fabs(value)) : fmax(fabs(a), fabs(b));
    // Written so that NaN counts.
    if (fabs(value - mirror[threadIdx.x][k]) <= relative * scale) continue;
    atomicMin(found, static_cast<unsigned long long>(i * size + j));
  }
}

__global__ void SetKernel(unsigned long long value, unsigned long long* to) { *to = value; }

}  // namespace

cudaError_t LaunchWidenBf16(cudaStream_t stream, const void* from, int64_t count, double* to) {
  return LaunchWiden(stream, static_cast<const __nv_bfloat16*>(from), count, to);
}
cudaError_t LaunchWidenF16(cudaStream_t stream, const void* from, int64_t count, double* to) {
  return LaunchWiden(stream, static_cast<const __half*>(from), count, to);
}
cudaError_t LaunchWidenF32(cudaStream_t stream, const float* from, int64_t count, double* to) {
  return LaunchWiden(stream, from, count, to);
}

cudaError_t LaunchGather(cudaStream_t stream, const double* from, int64_t from_cols,
                         const int64_t* rows, int64_t row_count, const int64_t* columns,
                         int64_t column_count, double* to) {
  if (row_count == 0 || column_count == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((column_count + kThreads - 1) / kThreads),
                  static_cast<unsigned>(std::min<int64_t>(row_count, 32768)));
  GatherKernel<<<grid, kThreads, 0, stream>>>(from, from_cols, rows, row_count, columns,
                                              column_count, to);
  return cudaGetLastError();
}

cudaError_t LaunchDivide(cudaStream_t stream, int64_t count, double divisor, double* values) {
  if (count == 0) return cudaSuccess;
  DivideKernel<<<BlocksFor(count), kThreads, 0, stream>>>(count, divisor, values);
  return cudaGetLastError();
}

cudaError_t LaunchDiagonalBlocks(cudaStream_t stream, const double* from, int64_t cols,
                                 int64_t width, int64_t size, double* to) {
  if (cols == 0) return cudaSuccess;
  DiagonalBlocksKernel<<<BlocksFor(cols * size), kThreads, 0, stream>>>(from, cols, width, size,
                                                                        to);
  return cudaGetLastError();
}

cudaError_t LaunchDiagonal(cudaStream_t stream, int64_t size, const double* from, double* to) {
  if (size == 0) return cudaSuccess;
  DiagonalKernel<<<static_cast<unsigned>((size + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      size, from, to);
  return cudaGetLastError();
}

cudaError_t LaunchColumnEnergies(cudaStream_t stream, int64_t rows, int64_t cols,
                                 const double* from, double* partial, double* to) {
  if (cols == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((cols + kThreads - 1) / kThreads);
  ColumnSquaresKernel<<<dim3(blocks, kColumnSlices), kThreads, 0, stream>>>(rows, cols, from,
                                                                            partial);
  ColumnMeansKernel<<<blocks, kThreads, 0, stream>>>(rows, cols, partial, to);
  return cudaGetLastError();
}

cudaError_t LaunchRowEnergies(cudaStream_t stream, int64_t rows, int64_t cols, const double* from,
                              double* to) {
  if (rows == 0) return cudaSuccess;
  RowEnergiesKernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(cols, from, to);
  return cudaGetLastError();
}

cudaError_t LaunchLowerPlusDiagonal(cudaStream_t stream, int64_t size, const double* from,
                                    double added, double* to) {
  if (size == 0) return cudaSuccess;
  LowerPlusDiagonalKernel<<<BlocksFor(size * size), kThreads, 0, stream>>>(size, from, added, to);
  return cudaGetLastError();
}

cudaError_t LaunchClearUpper(cudaStream_t stream, int64_t size, double* matrix) {
  if (size == 0) return cudaSuccess;
  ClearUpperKernel<<<BlocksFor(size * size), kThreads, 0, stream>>>(size, matrix);
  return cudaGetLastError();
}

cudaError_t LaunchFindAsymmetry(cudaStream_t stream, int64_t size, const double* matrix,
                                double relative, bool geometric, unsigned long long* found) {
  SetKernel<<<1, 1, 0, stream>>>(static_cast<unsigned long long>(size * size), found);
  if (size == 0) return cudaGetLastError();
  const auto squares = static_cast<unsigned>((size + kSquare - 1) / kSquare);
  FindAsymmetryKernel<<<dim3(squares, squares), dim3(kSquare, 8), 0, stream>>>(
      size, matrix, relative, geometric, found);
  return cudaGetLastError();
}

}  // namespace quantd::compute
