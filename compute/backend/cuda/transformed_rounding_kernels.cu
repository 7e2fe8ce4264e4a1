#include "compute/backend/cuda/number_format.cuh"
#include "compute/backend/cuda/transform_tile.cuh"
#include "compute/backend/cuda/transformed_rounding_kernels.h"

namespace quantd::compute {
namespace {

using Rule = FormatSpec::Rule;

constexpr int kThreads = 128;
// Groups of 32 are bound by memory: many rows a block, and the next tile is on its way while one is
// rounded. Groups of 16 are bound by the search for their scales.
constexpr bool LoadsAhead(int group) { return group == 32; }
constexpr int RowsOfBlock(int group) { return LoadsAhead(group) ? 1024 : 256; }

// Rounds kValues of a row's values, which share a scale with those of the lane's neighbours, in
// place to what they decode to. Codes are put into `packed`, four bits each, from bit 8 t0 on.
template <int kValues>
__device__ double RoundValues(const FormatSpec& spec, double global, int t0,
                              double (&row)[kRowValues], uint32_t& packed) {
  double v[kValues];
#pragma unroll
  for (int k = 0; k < kValues; ++k) v[k] = row[2 * t0 + k];
  const double scale = GroupScale<4, kValues, kValues == 4>(spec, v, global);
  const double factor = RoundingFactor(scale);
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    const uint32_t code = RoundElement(spec, v[k], factor);
    packed |= code << (8 * t0 + 4 * k);
    row[2 * t0 + k] = DecodeElement(spec, code, scale);
  }
  return scale;
}

// Byte t of lane q holds columns 8t + 2q and the next; returns the word of columns 8q .. 8q + 7.
__device__ uint32_t TransposeBytes(uint32_t word) {
  const uint32_t lane = threadIdx.x;
  uint32_t other = __shfl_xor_sync(0xffffffffu, word, 1);
  word = __byte_perm(word, other, lane % 2 == 0 ? 0x6240 : 0x3715);
  other = __shfl_xor_sync(0xffffffffu, word, 2);
  return __byte_perm(word, other, lane / 2 % 2 == 0 ? 0x5410 : 0x3276);
}

// Rounds a tile in place to what it decodes to; stores codes and scales.
template <int kGroup>
__device__ void RoundTile(const FormatSpec& spec, double global, int64_t rows, int64_t cols,
                          int64_t row0, int64_t col0, const RoundedMatrix& to, WarpTile& tile) {
  const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t r = row0 + LaneRow(i);
    uint32_t packed = 0;
    double scales[kSpan / kGroup];
#pragma unroll
    for (int g = 0; g < kSpan / kGroup; ++g) {
      scales[g] = RoundValues<kGroup / 4>(spec, global, g * kGroup / 8, tile.v[i], packed);
    }
    const uint32_t word = TransposeBytes(packed);
    if (r >= rows) continue;
#pragma unroll
    for (int g = 0; g < kSpan / kGroup; ++g) {
      const int64_t c = col0 + g * kGroup;
      if (q == g && c < cols) {
        StoreScale(spec, scales[g], global, (r * cols + c) / kGroup, to.scales);
      }
    }
    const int64_t c = col0 + 8 * q;
    if (c < cols) *reinterpret_cast<uint32_t*>(to.codes + (r * cols + c) / 2) = word;
  }
}

// Block x: a span of columns; block y: RowsOfBlock rows, 16 at a time a warp.
template <int kGroup, int kRule>
__global__ void __launch_bounds__(kThreads, 4)
    RoundTransformedKernel(FormatSpec given, double global, SpanBlocks<double> tw,
                           SpanBlocks<float> tx, int64_t rows, int64_t cols, const double* weight,
                           RoundedMatrix to, double* dequantized) {
  __shared__ BlockFragments forward;
  __shared__ BlockFragments back;
  const FormatSpec spec = Specialized<kRule>(given);
  const int64_t col0 = int64_t{blockIdx.x} * kSpan;
  FillFragments<false>(tw, cols, col0, forward);
  FillFragments<true>(tx, cols, col0, back);
  __syncthreads();
  constexpr int kStep = kThreads / 32 * kTileHeight;
  constexpr int kRows = RowsOfBlock(kGroup);
  const int64_t begin = int64_t{blockIdx.y} * kRows;
  const int64_t end = min(begin + kRows, rows);
  int64_t row0 = begin + threadIdx.x / 32 * kTileHeight;
  WarpTile next;
  if (LoadsAhead(kGroup)) next = LoadTile(weight, rows, cols, row0, col0);
#pragma unroll 1
  for (; row0 < end; row0 += kStep) {
    WarpTile tile = LoadsAhead(kGroup) ? next : LoadTile(weight, rows, cols, row0, col0);
    if (LoadsAhead(kGroup) && row0 + kStep < end) {
      next = LoadTile(weight, rows, cols, row0 + kStep, col0);
    }
    tile = Multiply(tile, forward);
    RoundTile<kGroup>(spec, global, rows, cols, row0, col0, to, tile);
    StoreTile(tile, rows, cols, row0, col0, to.decoded);
    StoreTile(Multiply(tile, back), rows, cols, row0, col0, dequantized);
  }
}

}  // namespace

bool CanRoundTransformed(const FormatSpec& spec, int64_t block_size, int64_t cols) {
  return spec.bits == 4 && spec.grid_rows == 1 && (spec.grid_cols == 16 || spec.grid_cols == 32) &&
         cols % spec.grid_cols == 0 && kSpan % block_size == 0;
}

cudaError_t LaunchRoundTransformed(cudaStream_t stream, const FormatSpec& spec, double global,
                                   const RoundingTransform& transform, int64_t rows, int64_t cols,
                                   const double* weight, const RoundedMatrix& to,
                                   double* dequantized) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  const auto size = static_cast<int>(transform.block_size);
  const int step = RowsOfBlock(static_cast<int>(spec.grid_cols));
  const dim3 grid(static_cast<unsigned>((cols + kSpan - 1) / kSpan),
                  static_cast<unsigned>((rows + step - 1) / step));
  const auto launch = [&](auto kernel) {
    kernel<<<grid, kThreads, 0, stream>>>(spec, global, {transform.tw, size}, {transform.tx, size},
                                          rows, cols, weight, to, dequantized);
    return cudaGetLastError();
  };
  switch (spec.rule) {
    case Rule::kMxfp4Noclip:
      return launch(RoundTransformedKernel<32, static_cast<int>(Rule::kMxfp4Noclip)>);
    case Rule::kMxfp4Ocp:
      return launch(RoundTransformedKernel<32, static_cast<int>(Rule::kMxfp4Ocp)>);
    case Rule::kNvfp4Amax:
      return launch(RoundTransformedKernel<16, static_cast<int>(Rule::kNvfp4Amax)>);
    case Rule::kNvfp4Mse:
      return launch(RoundTransformedKernel<16, static_cast<int>(Rule::kNvfp4Mse)>);
    default:
      return spec.grid_cols == 16 ? launch(RoundTransformedKernel<16, -1>)
                                  : launch(RoundTransformedKernel<32, -1>);
  }
}

}  // namespace quantd::compute
