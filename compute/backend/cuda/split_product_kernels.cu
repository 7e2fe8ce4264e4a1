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

// One block a square on or below the diagonal, which also writes its mirror: M is read once, and
// stands for its lower triangle. A thread takes kWide columns of a row.
constexpr int kSquare = 64;
constexpr int kSquareThreads = 256;

struct SplitSquare {
  float high[kSquare][kSquare + 1];
  float low[kSquare][kSquare + 1];
};

__device__ void StoreFour(const float* from, int64_t stride, __half* to) {
  const float v[kWide] = {from[0], from[stride], from[2 * stride], from[3 * stride]};
  *reinterpret_cast<Half4*>(to) = Pack(v);
}

// One of the two halves around k, the nearer one more often: the mean over many is k. By rounding
// to nearest, equal entries would all be off by the same.
__device__ float RoundAtRandom(double k, int64_t row, int64_t col) {
  uint32_t hash =
      static_cast<uint32_t>(row) * 0x9e3779b9u ^ static_cast<uint32_t>(col) * 0x85ebca6bu;
  hash = (hash ^ (hash >> 16)) * 0x7feb352du;
  hash = (hash ^ (hash >> 15)) * 0x846ca68bu;
  constexpr uint32_t kBelowHalf = 0x1fff;  // bits of a float32 that a half has not
  const uint32_t bits = __float_as_uint(static_cast<float>(k));
  return __uint_as_float((bits + (hash >> 16 & kBelowHalf)) & ~kBelowHalf);
}

__global__ void __launch_bounds__(kSquareThreads)
    SplitCorrelationKernel(int64_t size, const double* moment, const double* root, int64_t whole,
                           __half* high, __half* low, int* irregular) {
  if (blockIdx.x > blockIdx.y) return;
  __shared__ SplitSquare square;
  constexpr int kPitch = kSquare + 1;
  const int64_t row0 = int64_t{blockIdx.y} * kSquare;
  const int64_t col0 = int64_t{blockIdx.x} * kSquare;
  const bool mirrored = row0 / whole == col0 / whole;  // squares do not cross blocks
  const float times = mirrored ? 1.0f : 2.0f;
  const int c = static_cast<int>(threadIdx.x) * kWide % kSquare;
  for (int r = static_cast<int>(threadIdx.x) * kWide / kSquare; r < kSquare;
       r += kSquareThreads * kWide / kSquare) {
    if (row0 + r >= size || col0 + c >= size) continue;
    double m[kWide];
    double root_c[kWide];
    Load4(moment + (row0 + r) * size + col0 + c, m);
    Load4(root + col0 + c, root_c);
    const double root_r = root[row0 + r];
    bool regular = true;
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      const double product = root_r * root_c[i];
      double k = 0.0;
      if (row0 + r != col0 + c + i) {
        if (product > 0.0) k = m[i] / product;
        regular = regular && fabs(k) <= 2.0 && (product > 0.0 || m[i] == 0.0);
      }
      const float chosen =
          low == nullptr ? RoundAtRandom(k, row0 + r, col0 + c + i) : static_cast<float>(k);
      const float rounded = __half2float(__float2half_rn(chosen));
      square.high[r][c + i] = times * rounded;
      square.low[r][c + i] = times * static_cast<float>((k - rounded) * kLowScale);
    }
    if (!regular) *irregular = 1;
    const int64_t at = (row0 + r) * size + col0 + c;
    StoreFour(&square.high[r][c], 1, high + at);
    if (low != nullptr) StoreFour(&square.low[r][c], 1, low + at);
  }
  if (row0 == col0 || !mirrored) return;
  __syncthreads();
  for (int r = static_cast<int>(threadIdx.x) * kWide / kSquare; r < kSquare;
       r += kSquareThreads * kWide / kSquare) {
    if (col0 + r >= size || row0 + c >= size) continue;
    const int64_t at = (col0 + r) * size + row0 + c;
    StoreFour(&square.high[c][r], kPitch, high + at);
    if (low != nullptr) StoreFour(&square.low[c][r], kPitch, low + at);
  }
}

// The power of two that brings magnitudes up to `amax` to at most 1, as an exponent. Beyond
// 2^+-1000 it stays there: halves of what is left overflow or vanish, as the caller's sums show.
__device__ int ExponentAbove(double amax) {
  return amax > 0.0 ? min(max(ilogb(amax) + 1, -1000), 1000) : 0;
}

// One block a row, which it keeps as float32 until the scale is known.
__global__ void ScaleRowsKernel(int64_t cols, const double* a, const double* b, const double* root,
                                ScaledRows to) {
  extern __shared__ float4 kept[];
  const int64_t begin = blockIdx.x * cols;
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
    kept[c / kWide] = {e[0], e[1], e[2], e[3]};
  }
  // One exchange for all four.
  __shared__ double parts[4][kThreads / 32];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  amax = OverWarp(amax, MaxOf());
  largest = OverWarp(largest, MaxOf());
  energy = OverWarp(energy, SumOf());
  squares = OverWarp(squares, SumOf());
  if (threadIdx.x % 32 == 0) {
    parts[0][warp] = amax;
    parts[1][warp] = largest;
    parts[2][warp] = energy;
    parts[3][warp] = squares;
  }
  __syncthreads();
  amax = parts[0][0];
  for (int w = 1; w < kThreads / 32; ++w) amax = fmax(amax, parts[0][w]);
  const int exponent = min(max(ExponentAbove(amax), -100), 100);
  if (threadIdx.x == 0) {
    largest = energy = squares = 0.0;
    for (int w = 0; w < kThreads / 32; ++w) {
      largest = fmax(largest, parts[1][w]);
      energy += parts[2][w];
      squares += parts[3][w];
    }
    to.scale[blockIdx.x] = scalbn(1.0, exponent);
    to.energy[blockIdx.x] = energy;
    to.largest[blockIdx.x] = largest;
    to.squares[blockIdx.x] = squares;
  }
  const float factor = scalbnf(1.0f, -exponent);
  for (int64_t c = threadIdx.x * kWide; c < cols; c += kThreads * kWide) {
    const float4 e = kept[c / kWide];  // this thread's own
    const float scaled[kWide] = {e.x * factor, e.y * factor, e.z * factor, e.w * factor};
    *reinterpret_cast<Half4*>(to.half + begin + c) = Pack(scaled);
  }
}

// One block a row; the second pass reads what the first has brought near.
__global__ void SplitRowsKernel(int64_t cols, const double* from, __half* high, __half* low,
                                double* scale) {
  const int64_t begin = blockIdx.x * cols;
  double amax = 0.0;
  for (int64_t c = threadIdx.x * kWide; c < cols; c += blockDim.x * kWide) {
    double v[kWide];
    Load4(from + begin + c, v);
#pragma unroll
    for (int i = 0; i < kWide; ++i) amax = fmax(amax, fabs(v[i]));
  }
  const int exponent = ExponentAbove(OverBlock(amax, MaxOf()));
  if (threadIdx.x == 0) scale[blockIdx.x] = scalbn(1.0, exponent);
  const double factor = scalbn(1.0, -exponent);
  for (int64_t c = threadIdx.x * kWide; c < cols; c += blockDim.x * kWide) {
    double v[kWide];
    Load4(from + begin + c, v);
    float first[kWide];
    float rest[kWide];
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      const double scaled = v[i] * factor;
      first[i] = __half2float(__float2half_rn(static_cast<float>(scaled)));
      rest[i] = static_cast<float>((scaled - first[i]) * kLowScale);
    }
    *reinterpret_cast<Half4*>(high + begin + c) = Pack(first);
    *reinterpret_cast<Half4*>(low + begin + c) = Pack(rest);
  }
}

__global__ void ScaleOutputsKernel(int64_t tokens, int64_t rows, const float* product,
                                   const double* token_scale, const double* row_scale,
                                   double* outputs) {
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (r >= rows) return;
  for (int64_t t = blockIdx.y; t < tokens; t += gridDim.y) {
    outputs[t * rows + r] = token_scale[t] * row_scale[r] * product[t * rows + r];
  }
}

// Block x: kThreads * kWide columns; block y: kRowChunk rows.
constexpr int kRowsAtOnce = 4;
__global__ void SplitProductSumsKernel(int64_t rows, int64_t cols, const float* product,
                                       const __half* half, const double* scale, double* row_partial,
                                       double* column_partial) {
  constexpr int kWarps = kThreads / 32;
  __shared__ double row_parts[kRowChunk][kWarps + 1];
  const int64_t c = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWide;
  const int64_t row0 = int64_t{blockIdx.y} * kRowChunk;
  const int height = static_cast<int>(min(kRowChunk, rows - row0));
  double column[kWide] = {};
  // Rows are loaded some at a time: what bounds this is how many loads are under way.
  for (int k = 0; k < height; k += kRowsAtOnce) {
    float4 p4[kRowsAtOnce] = {};
    Half4 e4[kRowsAtOnce] = {};
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      if (c >= cols || k + j >= height) continue;
      const int64_t at = (row0 + k + j) * cols + c;
      p4[j] = *reinterpret_cast<const float4*>(product + at);
      e4[j] = *reinterpret_cast<const Half4*>(half + at);
    }
    double row[kRowsAtOnce];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const double s = k + j < height ? scale[row0 + k + j] : 0.0;
      const float2 low = __half22float2(e4[j].low);
      const float2 high = __half22float2(e4[j].high);
      const float p[kWide] = {p4[j].x, p4[j].y, p4[j].z, p4[j].w};
      const float e[kWide] = {low.x, low.y, high.x, high.y};
      row[j] = 0.0;
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        const double value = e[i];
        const double part = value * static_cast<double>(p[i]);
        const double sum = part + value * value;
        row[j] += sum;
        column[i] += s * s * sum;
      }
      row[j] *= s * s;
    }
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) row[j] = OverWarp(row[j], SumOf());
    if (threadIdx.x % 32 != 0) continue;
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      if (k + j < height) row_parts[k + j][threadIdx.x / 32] = row[j];
    }
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
                                   const double* root, int64_t whole, __half* high, __half* low,
                                   int* irregular) {
  const cudaError_t code = cudaMemsetAsync(irregular, 0, sizeof(int), stream);
  if (code != cudaSuccess) return code;
  const unsigned squares = Blocks(size, kSquare);
  SplitCorrelationKernel<<<dim3(squares, squares), kSquareThreads, 0, stream>>>(
      size, moment, root, whole, high, low, irregular);
  return cudaGetLastError();
}

cudaError_t LaunchScaleRows(cudaStream_t stream, int64_t rows, int64_t cols, const double* a,
                            const double* b, const double* root, const ScaledRows& to) {
  const size_t bytes = static_cast<size_t>(cols) * sizeof(float);
  const cudaError_t code = cudaFuncSetAttribute(
      ScaleRowsKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostScaledCols * 4);
  if (code != cudaSuccess) return code;
  ScaleRowsKernel<<<static_cast<unsigned>(rows), kThreads, bytes, stream>>>(cols, a, b, root, to);
  return cudaGetLastError();
}

int64_t SplitColumnChunks(int64_t cols) {
  return (cols + kThreads * kWide - 1) / (kThreads * kWide);
}

cudaError_t LaunchSplitProductSums(cudaStream_t stream, int64_t rows, int64_t cols,
                                   const float* product, const __half* half, const double* scale,
                                   double* row_partial, double* column_partial) {
  const dim3 grid(static_cast<unsigned>(SplitColumnChunks(cols)),
                  static_cast<unsigned>(RowChunks(rows)));
  SplitProductSumsKernel<<<grid, kThreads, 0, stream>>>(rows, cols, product, half, scale,
                                                        row_partial, column_partial);
  return cudaGetLastError();
}

cudaError_t LaunchSumRows(cudaStream_t stream, int64_t rows, const ScaledRows& from,
                          double* totals) {
  SumRowsKernel<<<1, 1024, 0, stream>>>(rows, from, totals);
  return cudaGetLastError();
}

cudaError_t LaunchSplitRows(cudaStream_t stream, int64_t rows, int64_t cols, const double* from,
                            __half* high, __half* low, double* scale) {
  // Few enough rows at a time that the cache holds them until the second pass.
  const unsigned threads = cols > 8192 ? 1024 : kThreads;
  SplitRowsKernel<<<static_cast<unsigned>(rows), threads, 0, stream>>>(cols, from, high, low,
                                                                       scale);
  return cudaGetLastError();
}

cudaError_t LaunchScaleOutputs(cudaStream_t stream, int64_t tokens, int64_t rows,
                               const float* product, const double* token_scale,
                               const double* row_scale, double* outputs) {
  const dim3 grid(Blocks(rows, kThreads), static_cast<unsigned>(tokens < 32768 ? tokens : 32768));
  ScaleOutputsKernel<<<grid, kThreads, 0, stream>>>(tokens, rows, product, token_scale, row_scale,
                                                    outputs);
  return cudaGetLastError();
}

}  // namespace quantd::compute
