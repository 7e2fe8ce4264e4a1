#include "compute/backend/cuda/block_reduce.cuh"
#include "compute/backend/cuda/measure_kernels.h"
#include "compute/backend/cuda/split_product_kernels.h"

namespace quantd::compute {
namespace {

constexpr int kThreads = 256;
constexpr int kWide = 4;  // columns of a thread

unsigned Blocks(int64_t count, int64_t threads) {
  return static_cast<unsigned>((count + threads - 1) / threads);
}

struct alignas(8) Half4 {
  __half2 low;
  __half2 high;
};
__device__ Half4 Pack(const float (&v)[kWide]) {
  return {__floats2half2_rn(v[0], v[1]), __floats2half2_rn(v[2], v[3])};
}
__device__ void Load4(const double* from, double (&v)[kWide]) {
  const double2 a = reinterpret_cast<const double2*>(from)[0];
  const double2 b = reinterpret_cast<const double2*>(from)[1];
  v[0] = a.x;
  v[1] = a.y;
  v[2] = b.x;
  v[3] = b.y;
}

__global__ void MomentRootsKernel(int64_t size, const double* moment, double* root) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < size) root[i] = sqrt(fmax(moment[i * (size + 1)], 0.0));
}

// Block y: a row; a thread takes kWide columns.
__global__ void SplitCorrelationKernel(int64_t size, const double* moment, const double* root,
                                       __half* high, __half* low, int* irregular) {
  const int64_t c = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWide;
  if (c >= size) return;
  for (int64_t r = blockIdx.y; r < size; r += gridDim.y) {
    double m[kWide];
    double root_c[kWide];
    Load4(moment + r * size + c, m);
    Load4(root + c, root_c);
    const double root_r = root[r];
    float k_high[kWide];
    float k_low[kWide];
    bool regular = true;
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      const double product = root_r * root_c[i];
      double k = 0.0;
      if (r != c + i) {
        if (product > 0.0) k = m[i] / product;
        regular = regular && fabs(k) <= 2.0 && (product > 0.0 || m[i] == 0.0);
      }
      const float rounded = __half2float(__double2half(k));
      k_high[i] = rounded;
      k_low[i] = static_cast<float>((k - rounded) * kLowScale);
    }
    *reinterpret_cast<Half4*>(high + r * size + c) = Pack(k_high);
    if (low != nullptr) *reinterpret_cast<Half4*>(low + r * size + c) = Pack(k_low);
    if (!regular) *irregular = 1;
  }
}

// One block a row. The power of two is known after the first pass; the second reads what the first
// has just written.
__global__ void ScaleRowsKernel(int64_t cols, const double* a, const double* b, const double* root,
                                ScaledRows to) {
  const int64_t begin = blockIdx.x * cols;
  float* const values = to.values + begin;
  double amax = 0.0;
  double energy = 0.0;
  double largest = 0.0;
  double squares = 0.0;
  for (int64_t c = threadIdx.x * kWide; c < cols; c += kThreads * kWide) {
    double d[kWide];
    double root_c[kWide];
    Load4(a + begin + c, d);
    Load4(root + c, root_c);
    if (b != nullptr) {
      double other[kWide];
      Load4(b + begin + c, other);
#pragma unroll
      for (int i = 0; i < kWide; ++i) d[i] -= other[i];
    }
    float e[kWide];
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      const double value = d[i] * root_c[i];
      e[i] = static_cast<float>(value);
      amax = fmax(amax, fabs(value));
      energy += value * value;
      largest = fmax(largest, fabs(d[i]));
      squares += d[i] * d[i];
    }
    *reinterpret_cast<float4*>(values + c) = {e[0], e[1], e[2], e[3]};
  }
  amax = OverBlock(amax, MaxOf());
  energy = OverBlock(energy, SumOf());
  largest = OverBlock(largest, MaxOf());
  squares = OverBlock(squares, SumOf());
  const int exponent = amax > 0.0 ? min(max(ilogb(amax) + 1, -100), 100) : 0;
  if (threadIdx.x == 0) {
    to.scale[blockIdx.x] = scalbn(1.0, exponent);
    to.energy[blockIdx.x] = energy;
    to.largest[blockIdx.x] = largest;
    to.squares[blockIdx.x] = squares;
  }
  const float factor = scalbnf(1.0f, -exponent);
  for (int64_t c = threadIdx.x * kWide; c < cols; c += kThreads * kWide) {
    const float4 e = *reinterpret_cast<const float4*>(values + c);
    const float scaled[kWide] = {e.x * factor, e.y * factor, e.z * factor, e.w * factor};
    *reinterpret_cast<Half4*>(to.half + begin + c) = Pack(scaled);
  }
}

// Block x: kThreads * kWide columns; block y: kRowChunk rows.
__global__ void SplitProductSumsKernel(int64_t rows, int64_t cols, const float* product,
                                       const float* values, const double* scale,
                                       double* row_partial, double* column_partial) {
  constexpr int kWarps = kThreads / 32;
  __shared__ double row_parts[kRowChunk][kWarps + 1];
  const int64_t c = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWide;
  const int64_t row0 = int64_t{blockIdx.y} * kRowChunk;
  const int height = static_cast<int>(min(kRowChunk, rows - row0));
  double column[kWide] = {};
  for (int k = 0; k < height; ++k) {
    const double s = scale[row0 + k];
    double row = 0.0;
    if (c < cols) {
      const int64_t at = (row0 + k) * cols + c;
      const float4 p4 = *reinterpret_cast<const float4*>(product + at);
      const float4 e4 = *reinterpret_cast<const float4*>(values + at);
      const float p[kWide] = {p4.x, p4.y, p4.z, p4.w};
      const float e[kWide] = {e4.x, e4.y, e4.z, e4.w};
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        const double value = e[i];
        const double part = value * (s * static_cast<double>(p[i]));
        row += part;
        column[i] += part + value * value;
      }
    }
    row = OverWarp(row, SumOf());
    if (threadIdx.x % 32 == 0) row_parts[k][threadIdx.x / 32] = row;
  }
  if (c < cols) {
#pragma unroll
    for (int i = 0; i < kWide; ++i) column_partial[blockIdx.y * cols + c + i] = column[i];
  }
  __syncthreads();
  for (int k = threadIdx.x; k < height; k += kThreads) {
    double sum = 0.0;
    for (int warp = 0; warp < kWarps; ++warp) sum += row_parts[k][warp];
    row_partial[(row0 + k) * gridDim.x + blockIdx.x] = sum;
  }
}

// One block: rows first to last, so that the order does not depend on the machine.
__global__ void SumRowsKernel(int64_t rows, ScaledRows from, double* totals) {
  double energy = 0.0;
  double largest = 0.0;
  double squares = 0.0;
  for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) {
    energy += from.energy[r];
    largest = fmax(largest, from.largest[r]);
    squares += from.squares[r];
  }
  energy = OverBlock(energy, SumOf());
  largest = OverBlock(largest, MaxOf());
  squares = OverBlock(squares, SumOf());
  if (threadIdx.x != 0) return;
  totals[0] = energy;
  totals[1] = largest;
  totals[2] = squares;
}

}  // namespace

cudaError_t LaunchMomentRoots(cudaStream_t stream, int64_t size, const double* moment,
                              double* root) {
  MomentRootsKernel<<<Blocks(size, kThreads), kThreads, 0, stream>>>(size, moment, root);
  return cudaGetLastError();
}

cudaError_t LaunchSplitCorrelation(cudaStream_t stream, int64_t size, const double* moment,
                                   const double* root, __half* high, __half* low, int* irregular) {
  const cudaError_t code = cudaMemsetAsync(irregular, 0, sizeof(int), stream);
  if (code != cudaSuccess) return code;
  const dim3 grid(Blocks(size, kThreads * kWide),
                  static_cast<unsigned>(size < 32768 ? size : 32768));
  SplitCorrelationKernel<<<grid, kThreads, 0, stream>>>(size, moment, root, high, low, irregular);
  return cudaGetLastError();
}

cudaError_t LaunchScaleRows(cudaStream_t stream, int64_t rows, int64_t cols, const double* a,
                            const double* b, const double* root, const ScaledRows& to) {
  ScaleRowsKernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(cols, a, b, root, to);
  return cudaGetLastError();
}

int64_t SplitColumnChunks(int64_t cols) {
  return (cols + kThreads * kWide - 1) / (kThreads * kWide);
}

cudaError_t LaunchSplitProductSums(cudaStream_t stream, int64_t rows, int64_t cols,
                                   const float* product, const float* values, const double* scale,
                                   double* row_partial, double* column_partial) {
  const dim3 grid(static_cast<unsigned>(SplitColumnChunks(cols)),
                  static_cast<unsigned>(RowChunks(rows)));
  SplitProductSumsKernel<<<grid, kThreads, 0, stream>>>(rows, cols, product, values, scale,
                                                        row_partial, column_partial);
  return cudaGetLastError();
}

cudaError_t LaunchSumRows(cudaStream_t stream, int64_t rows, const ScaledRows& from,
                          double* totals) {
  SumRowsKernel<<<1, 1024, 0, stream>>>(rows, from, totals);
  return cudaGetLastError();
}

}  // namespace quantd::compute
