#include <algorithm>

#include "compute/backend/cuda/integer_product_kernels.h"

namespace quantd::compute {
namespace {

constexpr int kThreads = 256;
constexpr int kSquare = 32;
constexpr int kSquareRows = 8;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kFractionBits = 41;

unsigned CeilDiv(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

// The lowest digit of q, which is left without it.
template <typename Integer>
__device__ int TakeDigit(Integer& q) {
  const int digit = static_cast<int>((q + kDigitBase / 2) & (kDigitBase - 1)) - kDigitBase / 2;
  q = (q - digit) / kDigitBase;
  return digit;
}

// Three digits fit 64 bits, whatever 32 bits they were summed up in.
__device__ double SumDigits(const int32_t* products, int64_t at, int64_t stride) {
  static_assert(kFractionDigits == 6);
  const auto three = [&](int first) {
    const int64_t high = products[at + (first + 2) * stride];
    const int64_t middle = products[at + (first + 1) * stride];
    return static_cast<double>((high * kDigitBase + middle) * kDigitBase +
                               products[at + first * stride]);
  };
  return three(3) * (kDigitBase * kDigitBase * kDigitBase) + three(0);
}

// The power of two that brings `largest` to [2^40, 2^41); 0 for 0.
__device__ double UnitsFor(double largest) {
  if (!(largest > 0.0)) return 0.0;
  int exponent = 0;
  frexp(largest, &exponent);
  return ldexp(1.0, kFractionBits - exponent);
}

// One block a column.
__global__ void LargestKernel(int64_t rows, const int32_t* codes, int* largest) {
  __shared__ int all;
  if (threadIdx.x == 0) all = 0;
  __syncthreads();
  int mine = 0;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) {
    mine = max(mine, abs(codes[blockIdx.x * rows + r]));
  }
  atomicMax(&all, mine);
  __syncthreads();
  if (threadIdx.x == 0) largest[blockIdx.x] = all;
}

// Four bytes a thread; the row's padding is a multiple of four.
__global__ void SplitByColumnKernel(int64_t rows, int64_t cols, const int32_t* codes, int digits,
                                    int64_t padded_cols, int64_t pitch, int8_t* to) {
  const int64_t r0 = 4 * (int64_t{blockIdx.x} * kThreads + threadIdx.x);
  if (r0 >= pitch) return;
  for (int64_t c = blockIdx.y; c < padded_cols; c += gridDim.y) {
    int q[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      q[i] = c < cols && r0 + i < rows ? codes[c * rows + r0 + i] : 0;
    }
    for (int k = 0; k < digits; ++k) {
      signed char digit[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        digit[i] = static_cast<signed char>(k + 1 < digits ? TakeDigit(q[i]) : q[i]);
      }
      *reinterpret_cast<char4*>(to + (k * padded_cols + c) * pitch + r0) =
          make_char4(digit[0], digit[1], digit[2], digit[3]);
    }
  }
}

__global__ void SplitByRowKernel(int64_t rows, int64_t cols, const int32_t* codes, int digits,
                                 int64_t padded_rows, int64_t pitch, int8_t* to) {
  __shared__ int square[kSquare][kSquare + 1];
  const int64_t c0 = int64_t{blockIdx.x} * kSquare;
  for (int64_t r0 = int64_t{blockIdx.y} * kSquare; r0 < padded_rows;
       r0 += int64_t{gridDim.y} * kSquare) {
    for (int k = threadIdx.y; k < kSquare; k += kSquareRows) {
      const bool inside = c0 + k < cols && r0 + threadIdx.x < rows;
      square[k][threadIdx.x] = inside ? codes[(c0 + k) * rows + r0 + threadIdx.x] : 0;
    }
    __syncthreads();
    const int64_t c = c0 + threadIdx.x;
    for (int k = threadIdx.y; k < kSquare; k += kSquareRows) {
      const int64_t r = r0 + k;
      if (r >= padded_rows || c >= pitch) continue;
      int q = square[threadIdx.x][k];
      for (int d = 0; d < digits; ++d) {
        const int digit = d + 1 < digits ? TakeDigit(q) : q;
        to[(d * padded_rows + r) * pitch + c] = static_cast<int8_t>(digit);
      }
    }
    __syncthreads();
  }
}

__device__ void StoreDigits(double scaled, int64_t at, int64_t stride, int8_t* to) {
  long long q = __double2ll_rn(scaled);
#pragma unroll
  for (int k = 0; k < kFractionDigits; ++k) {
    const int digit = k + 1 < kFractionDigits ? TakeDigit(q) : static_cast<int>(q);
    to[at + k * stride] = static_cast<int8_t>(digit);
  }
}

// One block a row of `to`.
__global__ void SplitWeightedKernel(int64_t rows, const int32_t* codes, const double* weight,
                                    double largest_weight, const int* largest, int64_t first,
                                    int64_t count, int64_t pitch, int8_t* to, double* units) {
  const int64_t i = blockIdx.x;
  const int64_t stride = gridDim.x * pitch;
  const double scale = i < count ? UnitsFor(largest_weight * largest[first + i]) : 0.0;
  if (threadIdx.x == 0) units[i] = scale > 0.0 ? 1.0 / scale : 0.0;
  for (int64_t r = threadIdx.x; r < pitch; r += kThreads) {
    const double value =
        r < rows && i < count ? weight[r] * codes[(first + i) * rows + r] * scale : 0.0;
    StoreDigits(value, i * pitch + r, stride, to);
  }
}

__device__ double LargestOfBlock(double value) {
  __shared__ double of_warp[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmax(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  for (const double each : of_warp) value = fmax(value, each);
  return value;
}

// One block a row of `to`.
__global__ void SplitScaledKernel(int64_t size, const double* matrix, const double* scale,
                                  int64_t first, int64_t count, int64_t pitch, int8_t* to,
                                  double* units) {
  const int64_t i = blockIdx.x;
  const int64_t stride = gridDim.x * pitch;
  const bool inside = i < count;
  const double* const row = matrix + (first + i) * size;
  double largest = 0.0;
  for (int64_t j = threadIdx.x; inside && j < size; j += kThreads) {
    largest = fmax(largest, fabs(row[j] * scale[j]));
  }
  largest = LargestOfBlock(largest);
  // The row's own factor changes no digit.
  const double own = inside ? scale[first + i] : 0.0;
  const double to_digits = UnitsFor(largest);
  if (threadIdx.x == 0) units[i] = to_digits > 0.0 ? own / to_digits : 0.0;
  for (int64_t j = threadIdx.x; j < pitch; j += kThreads) {
    const double value = inside && j < size ? row[j] * scale[j] * to_digits : 0.0;
    StoreDigits(value, i * pitch + j, stride, to);
  }
}

__global__ void CombineGramKernel(int64_t size, const int32_t* products, const double* units,
                                  int64_t first, int64_t count, int64_t padded_count, int64_t pitch,
                                  double factor, bool add, double* gram) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (int64_t i = blockIdx.y; i < count; i += gridDim.y) {
    if (j > first + i) continue;
    const double sum = SumDigits(products, i * pitch + j, padded_count * pitch);
    double* const to = gram + (first + i) * size + j;
    *to = (add ? *to : 0.0) + factor * units[i] * sum;
  }
}

__global__ void CombineEnergiesKernel(int64_t rows, const int32_t* codes, const int32_t* products,
                                      const double* units, int64_t first, int64_t count,
                                      int64_t padded_count, int64_t pitch, double factor,
                                      double* partial) {
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (r >= rows) return;
  double sum = 0.0;
  for (int64_t i = blockIdx.y; i < count; i += kEnergySlices) {
    const double product = SumDigits(products, i * pitch + r, padded_count * pitch);
    sum += units[i] * codes[(first + i) * rows + r] * product;
  }
  partial[blockIdx.y * rows + r] += factor * sum;
}

__global__ void SumEnergiesKernel(int64_t rows, const double* partial, double* to) {
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (r >= rows) return;
  double sum = 0.0;
  for (int64_t slice = 0; slice < kEnergySlices; ++slice) sum += partial[slice * rows + r];
  to[r] = sum;
}

}  // namespace

cudaError_t LaunchLargestCodes(cudaStream_t stream, int64_t rows, int64_t cols,
                               const int32_t* codes, int* largest) {
  if (cols == 0) return cudaSuccess;
  LargestKernel<<<static_cast<unsigned>(cols), kThreads, 0, stream>>>(rows, codes, largest);
  return cudaGetLastError();
}

cudaError_t LaunchSplitCodesByColumn(cudaStream_t stream, int64_t rows, int64_t cols,
                                     const int32_t* codes, int digits, int64_t padded_cols,
                                     int64_t pitch, int8_t* to) {
  if (pitch == 0 || padded_cols == 0) return cudaSuccess;
  const dim3 grid(CeilDiv(pitch / 4, kThreads),
                  static_cast<unsigned>(std::min<int64_t>(padded_cols, 4096)));
  SplitByColumnKernel<<<grid, kThreads, 0, stream>>>(rows, cols, codes, digits, padded_cols, pitch,
                                                     to);
  return cudaGetLastError();
}

cudaError_t LaunchSplitCodesByRow(cudaStream_t stream, int64_t rows, int64_t cols,
                                  const int32_t* codes, int digits, int64_t padded_rows,
                                  int64_t pitch, int8_t* to) {
  if (pitch == 0 || padded_rows == 0) return cudaSuccess;
  const dim3 grid(CeilDiv(pitch, kSquare), std::min(CeilDiv(padded_rows, kSquare), 32768u));
  SplitByRowKernel<<<grid, dim3(kSquare, kSquareRows), 0, stream>>>(rows, cols, codes, digits,
                                                                    padded_rows, pitch, to);
  return cudaGetLastError();
}

cudaError_t LaunchSplitWeightedCodes(cudaStream_t stream, int64_t rows, const int32_t* codes,
                                     const double* weight, double largest_weight,
                                     const int* largest, int64_t first, int64_t count,
                                     int64_t padded_count, int64_t pitch, int8_t* to,
                                     double* units) {
  if (padded_count == 0) return cudaSuccess;
  SplitWeightedKernel<<<static_cast<unsigned>(padded_count), kThreads, 0, stream>>>(
      rows, codes, weight, largest_weight, largest, first, count, pitch, to, units);
  return cudaGetLastError();
}

cudaError_t LaunchSplitScaledRows(cudaStream_t stream, int64_t size, const double* matrix,
                                  const double* scale, int64_t first, int64_t count,
                                  int64_t padded_count, int64_t pitch, int8_t* to, double* units) {
  if (padded_count == 0) return cudaSuccess;
  SplitScaledKernel<<<static_cast<unsigned>(padded_count), kThreads, 0, stream>>>(
      size, matrix, scale, first, count, pitch, to, units);
  return cudaGetLastError();
}

cudaError_t LaunchCombineGram(cudaStream_t stream, int64_t size, const int32_t* products,
                              const double* units, int64_t first, int64_t count,
                              int64_t padded_count, int64_t pitch, double factor, bool add,
                              double* gram) {
  if (count == 0) return cudaSuccess;
  const dim3 grid(CeilDiv(first + count, kThreads),
                  static_cast<unsigned>(std::min<int64_t>(count, 1024)));
  CombineGramKernel<<<grid, kThreads, 0, stream>>>(size, products, units, first, count,
                                                   padded_count, pitch, factor, add, gram);
  return cudaGetLastError();
}

cudaError_t LaunchCombineEnergies(cudaStream_t stream, int64_t rows, const int32_t* codes,
                                  const int32_t* products, const double* units, int64_t first,
                                  int64_t count, int64_t padded_count, int64_t pitch, double factor,
                                  double* partial) {
  if (rows == 0) return cudaSuccess;
  CombineEnergiesKernel<<<dim3(CeilDiv(rows, kThreads), kEnergySlices), kThreads, 0, stream>>>(
      rows, codes, products, units, first, count, padded_count, pitch, factor, partial);
  return cudaGetLastError();
}

cudaError_t LaunchSumEnergies(cudaStream_t stream, int64_t rows, const double* partial,
                              double* to) {
  if (rows == 0) return cudaSuccess;
  SumEnergiesKernel<<<CeilDiv(rows, kThreads), kThreads, 0, stream>>>(rows, partial, to);
  return cudaGetLastError();
}

}  // namespace quantd::compute
