#include <algorithm>

#include "compute/backend/cuda/number_format.cuh"
#include "compute/backend/cuda/rounding_kernels.h"

namespace quantd::compute {
namespace {

using Rule = FormatSpec::Rule;

constexpr int kThreads = 256;
constexpr int kRun = 8;  // codes that a thread packs: whole bytes for any bits

// The low bytes of `packed`, those of codes [at, at + count) of a row.
__device__ void StoreCodes(uint64_t packed, int bits, int count, uint8_t* to) {
  if (bits == 4 && count == kRun && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(packed);
  } else if (bits == 8 && count == kRun && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
    *reinterpret_cast<uint64_t*>(to) = packed;
  } else {
    for (int i = 0; i < count * bits / 8; ++i) to[i] = static_cast<uint8_t>(packed >> (8 * i));
  }
}

// Rounds kRun values that share a scale in place to what they decode to; returns the packed codes.
__device__ uint64_t RoundRun(const FormatSpec& spec, double scale, double factor,
                             double (&values)[kRun]) {
  uint64_t packed = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const uint32_t code = RoundElement(spec, values[i], factor);
    packed |= uint64_t{code} << (i * spec.bits);
    values[i] = DecodeElement(spec, code, scale);
  }
  return packed;
}

__global__ void AmaxKernel(int64_t count, const double* values, unsigned long long* amax) {
  double largest = 0.0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    largest = fmax(largest, fabs(values[i]));
  }
  largest = MaxOverLanes<32>(largest);
  // Magnitudes order like their bits.
  if (threadIdx.x % 32 == 0) {
    atomicMax(amax, static_cast<unsigned long long>(__double_as_longlong(largest)));
  }
}

// --- Groups of 16, 32, .. 256 columns of a row: kLanes threads with kRun values each ------------

template <int kLanes, int kRule>
__global__ void __launch_bounds__(kThreads)
    RoundGroupsKernel(FormatSpec given, double global, int64_t runs, const double* values,
                      RoundedMatrix to) {
  const FormatSpec spec = Specialized<kRule>(given);
  const int64_t run = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  double v[kRun] = {};
  if (run < runs) {
    const auto* from = reinterpret_cast<const double2*>(values + run * kRun);
#pragma unroll
    for (int i = 0; i < kRun / 2; ++i) {
      const double2 pair = from[i];
      v[2 * i] = pair.x;
      v[2 * i + 1] = pair.y;
    }
  }
  const double scale = GroupScale<kLanes, kRun>(spec, v, global);  // all lanes take part
  if (run >= runs) return;
  if (to.scales != nullptr && run % kLanes == 0) {
    StoreScale(spec, scale, global, run / kLanes, to.scales);
  }
  const uint64_t packed = RoundRun(spec, scale, RoundingFactor(scale), v);
  if (to.codes != nullptr) StoreCodes(packed, spec.bits, kRun, to.codes + run * spec.bits);
  if (to.decoded == nullptr) return;
  auto* decoded = reinterpret_cast<double2*>(to.decoded + run * kRun);
#pragma unroll
  for (int i = 0; i < kRun / 2; ++i) decoded[i] = {v[2 * i], v[2 * i + 1]};
}

template <int kLanes>
cudaError_t LaunchRoundGroups(cudaStream_t stream, const FormatSpec& spec, double global,
                              int64_t count, const double* values, const RoundedMatrix& to) {
  const int64_t runs = count / kRun;
  const auto blocks = static_cast<unsigned>((runs + kThreads - 1) / kThreads);
  const auto launch = [&](auto kernel) {
    kernel<<<blocks, kThreads, 0, stream>>>(spec, global, runs, values, to);
    return cudaGetLastError();
  };
  if (kLanes == 2 && spec.rule == Rule::kNvfp4Mse) {
    return launch(RoundGroupsKernel<2, static_cast<int>(Rule::kNvfp4Mse)>);
  }
  if (kLanes == 2 && spec.rule == Rule::kNvfp4Amax) {
    return launch(RoundGroupsKernel<2, static_cast<int>(Rule::kNvfp4Amax)>);
  }
  if (kLanes == 4 && spec.rule == Rule::kMxfp4Noclip) {
    return launch(RoundGroupsKernel<4, static_cast<int>(Rule::kMxfp4Noclip)>);
  }
  return launch(RoundGroupsKernel<kLanes, -1>);
}

// --- Any grid: scales first, then codes ---------------------------------------------------------

template <typename Combine>
__device__ double OverBlock(double value, Combine combine) {
  __shared__ double parts[32];
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  }
  __syncthreads();  // parts may still be read by an earlier call
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) value = combine(value, parts[warp]);
  return value;
}

// One block of threads a group; groups are counted along their rows.
__global__ void GroupScalesKernel(FormatSpec spec, double global, int64_t rows, int64_t cols,
                                  const double* values, double* scales) {
  const int64_t groups_a_row = (cols + spec.grid_cols - 1) / spec.grid_cols;
  const int64_t row0 = blockIdx.x / groups_a_row * spec.grid_rows;
  const int64_t col0 = blockIdx.x % groups_a_row * spec.grid_cols;
  const int64_t row_end = min(row0 + spec.grid_rows, rows);
  const int64_t col_end = min(col0 + spec.grid_cols, cols);
  double amax = 0.0;
  for (int64_t r = row0; r < row_end; ++r) {
    for (int64_t c = col0 + threadIdx.x; c < col_end; c += blockDim.x) {
      amax = fmax(amax, fabs(values[r * cols + c]));
    }
  }
  amax = OverBlock(amax, [](double a, double b) { return fmax(a, b); });
  double scale = 0.0;
  if (spec.rule == Rule::kIntegerGaussian) {
    double squares = 0.0;
    for (int64_t c = col0 + threadIdx.x; amax > 0.0 && c < col_end; c += blockDim.x) {
      squares += RelativeSquare(values[row0 * cols + c], amax);
    }
    squares = OverBlock(squares, [](double a, double b) { return a + b; });
    scale = ScaleOfSquares(spec, amax, squares);
  } else {
    scale = ScaleOfAmax(spec, amax, global);
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

__global__ void StoreScalesKernel(FormatSpec spec, double global, int64_t count,
                                  const double* scales, uint8_t* to) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) StoreScale(spec, scales[i], global, i, to);
}

// A thread takes kRun neighbouring columns of a row, each under its own scale.
__global__ void RoundRunsKernel(FormatSpec spec, int64_t rows, int64_t cols, const double* values,
                                const double* scales, RoundedMatrix to) {
  const int64_t runs_a_row = (cols + kRun - 1) / kRun;
  const int64_t groups_a_row = (cols + spec.grid_cols - 1) / spec.grid_cols;
  const int64_t run = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t r = run / runs_a_row;
  if (r >= rows) return;
  const int64_t c0 = run % runs_a_row * kRun;
  const int count = static_cast<int>(min(int64_t{kRun}, cols - c0));
  const double* row_scales = scales + r / spec.grid_rows * groups_a_row;
  uint64_t packed = 0;
  for (int i = 0; i < count; ++i) {
    const double scale = row_scales[(c0 + i) / spec.grid_cols];
    const int64_t at = r * cols + c0 + i;
    const uint32_t code = RoundElement(spec, values[at], RoundingFactor(scale));
    packed |= uint64_t{code} << (i * spec.bits);
    if (to.decoded != nullptr) to.decoded[at] = DecodeElement(spec, code, scale);
  }
  if (to.codes != nullptr) {
    StoreCodes(packed, spec.bits, count, to.codes + (r * cols + c0) * spec.bits / 8);
  }
}

cudaError_t LaunchRoundAny(cudaStream_t stream, const FormatSpec& spec, double global, int64_t rows,
                           int64_t cols, const double* values, double* scratch,
                           const RoundedMatrix& to) {
  cudaError_t code = LaunchGroupScales(stream, spec, global, rows, cols, values, scratch);
  if (code != cudaSuccess) return code;
  if (to.scales != nullptr) {
    code =
        LaunchStoreScales(stream, spec, global, ScaleCount(spec, rows, cols), scratch, to.scales);
    if (code != cudaSuccess) return code;
  }
  const int64_t runs = rows * ((cols + kRun - 1) / kRun);
  const auto blocks = static_cast<unsigned>((runs + kThreads - 1) / kThreads);
  RoundRunsKernel<<<blocks, kThreads, 0, stream>>>(spec, rows, cols, values, scratch, to);
  return cudaGetLastError();
}

bool IsGroupOfRuns(const FormatSpec& spec, int64_t cols) {
  const int64_t lanes = spec.grid_cols / kRun;
  return spec.grid_rows == 1 && cols % spec.grid_cols == 0 && spec.grid_cols % kRun == 0 &&
         lanes >= 2 && lanes <= 32 && (lanes & (lanes - 1)) == 0;
}

}  // namespace

cudaError_t LaunchAmax(cudaStream_t stream, int64_t count, const double* values, double* amax) {
  const cudaError_t code = cudaMemsetAsync(amax, 0, sizeof(double), stream);
  if (code != cudaSuccess || count == 0) return code;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>((count + kThreads - 1) / kThreads, 2112));
  AmaxKernel<<<blocks, kThreads, 0, stream>>>(count, values,
                                              reinterpret_cast<unsigned long long*>(amax));
  return cudaGetLastError();
}

int64_t ScaleCount(const FormatSpec& spec, int64_t rows, int64_t cols) {
  return ((rows + spec.grid_rows - 1) / spec.grid_rows) *
         ((cols + spec.grid_cols - 1) / spec.grid_cols);
}

cudaError_t LaunchGroupScales(cudaStream_t stream, const FormatSpec& spec, double global,
                              int64_t rows, int64_t cols, const double* values, double* scales) {
  const int64_t groups = ScaleCount(spec, rows, cols);
  if (groups == 0) return cudaSuccess;
  const int threads = spec.grid_rows * spec.grid_cols <= 512 ? 32 : kThreads;
  GroupScalesKernel<<<static_cast<unsigned>(groups), threads, 0, stream>>>(spec, global, rows, cols,
                                                                           values, scales);
  return cudaGetLastError();
}

cudaError_t LaunchStoreScales(cudaStream_t stream, const FormatSpec& spec, double global,
                              int64_t count, const double* scales, uint8_t* to) {
  if (count == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  StoreScalesKernel<<<blocks, kThreads, 0, stream>>>(spec, global, count, scales, to);
  return cudaGetLastError();
}

bool NeedsScaleScratch(const FormatSpec& spec, int64_t cols) { return !IsGroupOfRuns(spec, cols); }

cudaError_t LaunchRound(cudaStream_t stream, const FormatSpec& spec, double global, int64_t rows,
                        int64_t cols, const double* values, double* scratch,
                        const RoundedMatrix& to) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  if (!IsGroupOfRuns(spec, cols)) {
    return LaunchRoundAny(stream, spec, global, rows, cols, values, scratch, to);
  }
  switch (spec.grid_cols / kRun) {
    case 2:
      return LaunchRoundGroups<2>(stream, spec, global, rows * cols, values, to);
    case 4:
      return LaunchRoundGroups<4>(stream, spec, global, rows * cols, values, to);
    case 8:
      return LaunchRoundGroups<8>(stream, spec, global, rows * cols, values, to);
    case 16:
      return LaunchRoundGroups<16>(stream, spec, global, rows * cols, values, to);
    default:
      return LaunchRoundGroups<32>(stream, spec, global, rows * cols, values, to);
  }
}

}  // namespace quantd::compute
