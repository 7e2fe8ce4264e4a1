#include "compute/backend/cuda/block_reduce.cuh"
#include "compute/backend/cuda/measure_kernels.h"

namespace quantd::compute {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__device__ int64_t FirstIndex() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }
constexpr int64_t kStride = int64_t{kPartials} * kThreads;

__global__ void DifferenceKernel(int64_t count, const double* a, const double* b, double* to,
                                 double* partial) {
  double largest = 0.0;
  double squares = 0.0;
  for (int64_t i = FirstIndex(); i < count; i += kStride) {
    const double value = b == nullptr ? a[i] : a[i] - b[i];
    if (to != nullptr) to[i] = value;
    largest = fmax(largest, fabs(value));
    squares += value * value;
  }
  largest = OverBlock(largest, MaxOf());
  squares = OverBlock(squares, SumOf());
  if (threadIdx.x != 0) return;
  partial[blockIdx.x] = largest;
  partial[kPartials + blockIdx.x] = squares;
}

__global__ void SquaredDistanceKernel(int64_t count, const double* a, const double* b,
                                      double* partial) {
  double error = 0.0;
  double energy = 0.0;
  for (int64_t i = FirstIndex(); i < count; i += kStride) {
    const double difference = a[i] - b[i];
    error += difference * difference;
    energy += a[i] * a[i];
  }
  error = OverBlock(error, SumOf());
  energy = OverBlock(energy, SumOf());
  if (threadIdx.x != 0) return;
  partial[blockIdx.x] = error;
  partial[kPartials + blockIdx.x] = energy;
}

__global__ void InnerProductKernel(int64_t count, const double* a, const double* b,
                                   double* partial) {
  double sum = 0.0;
  for (int64_t i = FirstIndex(); i < count; i += kStride) sum += a[i] * b[i];
  sum = OverBlock(sum, SumOf());
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Block x: kThreads columns, a thread each; block y: kRowChunk rows.
__global__ void ProductSumsKernel(int64_t rows, int64_t cols, const double* a, const double* b,
                                  double* row_partial, double* column_partial) {
  __shared__ double row_parts[kRowChunk][kWarps + 1];
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row0 = int64_t{blockIdx.y} * kRowChunk;
  const int height = static_cast<int>(min(kRowChunk, rows - row0));
  double column = 0.0;
  for (int k = 0; k < height; ++k) {
    const int64_t at = (row0 + k) * cols + c;
    const double part = c < cols ? a[at] * b[at] : 0.0;
    column += part;
    const double row = OverWarp(part, SumOf());
    if (threadIdx.x % 32 == 0) row_parts[k][threadIdx.x / 32] = row;
  }
  if (c < cols) column_partial[blockIdx.y * cols + c] = column;
  __syncthreads();
  for (int k = threadIdx.x; k < height; k += kThreads) {
    double sum = 0.0;
    for (int warp = 0; warp < kWarps; ++warp) sum += row_parts[k][warp];
    row_partial[(row0 + k) * gridDim.x + blockIdx.x] = sum;
  }
}

__global__ void FinishRowsKernel(int64_t rows, int64_t chunks, const double* partial, double* to) {
  const int64_t r = FirstIndex();
  if (r >= rows) return;
  double sum = 0.0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[r * chunks + chunk];
  to[r] = sum;
}

__global__ void FinishColumnsKernel(int64_t cols, int64_t chunks, const double* partial,
                                    double* to) {
  const int64_t c = FirstIndex();
  if (c >= cols) return;
  double sum = 0.0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * cols + c];
  to[c] = sum;
}

unsigned Blocks(int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

}  // namespace

cudaError_t LaunchDifference(cudaStream_t stream, int64_t count, const double* a, const double* b,
                             double* to, double* partial) {
  DifferenceKernel<<<kPartials, kThreads, 0, stream>>>(count, a, b, to, partial);
  return cudaGetLastError();
}

cudaError_t LaunchSquaredDistance(cudaStream_t stream, int64_t count, const double* a,
                                  const double* b, double* partial) {
  SquaredDistanceKernel<<<kPartials, kThreads, 0, stream>>>(count, a, b, partial);
  return cudaGetLastError();
}

cudaError_t LaunchInnerProduct(cudaStream_t stream, int64_t count, const double* a, const double* b,
                               double* partial) {
  InnerProductKernel<<<kPartials, kThreads, 0, stream>>>(count, a, b, partial);
  return cudaGetLastError();
}

int64_t RowChunks(int64_t rows) { return (rows + kRowChunk - 1) / kRowChunk; }
int64_t ColumnChunks(int64_t cols) { return (cols + kThreads - 1) / kThreads; }

cudaError_t LaunchProductSums(cudaStream_t stream, int64_t rows, int64_t cols, const double* a,
                              const double* b, double* row_partial, double* column_partial) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ColumnChunks(cols)),
                  static_cast<unsigned>(RowChunks(rows)));
  ProductSumsKernel<<<grid, kThreads, 0, stream>>>(rows, cols, a, b, row_partial, column_partial);
  return cudaGetLastError();
}

cudaError_t LaunchFinishRowSums(cudaStream_t stream, int64_t rows, int64_t chunks,
                                const double* partial, double* to) {
  if (rows == 0) return cudaSuccess;
  FinishRowsKernel<<<Blocks(rows), kThreads, 0, stream>>>(rows, chunks, partial, to);
  return cudaGetLastError();
}

cudaError_t LaunchFinishColumnSums(cudaStream_t stream, int64_t cols, int64_t chunks,
                                   const double* partial, double* to) {
  if (cols == 0) return cudaSuccess;
  FinishColumnsKernel<<<Blocks(cols), kThreads, 0, stream>>>(cols, chunks, partial, to);
  return cudaGetLastError();
}

}  // namespace quantd::compute
