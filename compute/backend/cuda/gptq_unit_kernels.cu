#include "compute/backend/cuda/gptq_rounding.cuh"
#include "compute/backend/cuda/gptq_unit_kernels.h"

namespace quantd::compute {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 32;                 // of a thread block
constexpr int kLanes = kThreads / kRows;  // that find the scales of a row
constexpr int kErrorPitch = kRows + 2;    // errors are read two rows at a time
constexpr int kUpdateRows = 8;            // of the rest of the panel, by one thread
constexpr int kUpdatePairs = kThreads * kUpdateRows / kRows;  // columns in pairs, by all threads

template <int kWidth>
struct alignas(16) UnitTile {
  static constexpr int kPitch = kWidth + 1;
  double values[kRows][kPitch];  // transformed, then decoded, by column
  double block[kWidth][kPitch];  // Tw, then Tx: the entries of the row's own block
  double coupling[kWidth * kWidth];
  union alignas(16) {
    double updated[kRows][kPitch];       // by column
    double errors[kWidth][kErrorPitch];  // by position
  };
  double scales[kRows][3];
  double factors[kRows][3];
  int slots[kWidth];        // by position: the column
  int scale_slots[kWidth];  // by position: the group
  int positions[kWidth];    // by column
  uint8_t codes[kRows][kWidth + 4];
};

template <int kWidth>
__device__ void LoadUnit(const GptqUnitRows& p, int64_t row0, UnitTile<kWidth>& tile) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kWidth) {
    const int column = p.inner[thread];
    tile.slots[thread] = column;
    tile.scale_slots[thread] = column / static_cast<int>(p.format.grid_cols);
    tile.positions[column] = thread;
  }
  for (int i = thread; i < kRows * kWidth; i += kThreads) {
    const int r = i / kWidth;
    const int position = i % kWidth;
    tile.updated[r][p.inner[position]] =
        row0 + r < p.rows ? p.updated[(row0 + r) * p.cols + p.begin + position] : 0.0;
  }
  for (int i = thread; i < kWidth * kWidth; i += kThreads) tile.coupling[i] = p.coupling[i];
}

// block[c][m] = entry (c, m) of column c's own block, B x B.
template <int kWidth, typename T>
__device__ void LoadBlocks(const GptqUnitRows& p, const T* from, UnitTile<kWidth>& tile) {
  for (int i = static_cast<int>(threadIdx.x); i < kWidth * p.block_size; i += kThreads) {
    tile.block[i / p.block_size][i % p.block_size] = from[i];
  }
}

// values = updated Tw^T by blocks.
template <int kWidth, bool kTransform>
__device__ void TransformTile(const GptqUnitRows& p, UnitTile<kWidth>& tile) {
  constexpr int kStep = kThreads / kWidth;
  const int c = static_cast<int>(threadIdx.x) % kWidth;
  const int r0 = static_cast<int>(threadIdx.x) / kWidth;
  const int first = kTransform ? c / p.block_size * p.block_size : 0;
  double sums[kRows / kStep] = {};
  if (kTransform) {
    for (int m = 0; m < p.block_size; ++m) {
      const double t = tile.block[c][m];
#pragma unroll
      for (int i = 0; i < kRows / kStep; ++i) {
        sums[i] = fma(tile.updated[r0 + i * kStep][first + m], t, sums[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRows / kStep; ++i) {
    const int r = r0 + i * kStep;
    tile.values[r][c] = kTransform ? sums[i] : tile.updated[r][c];
  }
}

// Lanes of a group are neighbours in a warp.
template <int kGroupLanes, int kValues>
__device__ double DividedScale(const GptqUnitRows& p, const double (&values)[kValues]) {
  const double amax = GroupAmax<kGroupLanes, kValues>(values);
  const bool small =
      p.divisor.follows_amax && (amax > p.divisor.outgrown || amax < p.divisor.small);
  return GroupScale<kGroupLanes, kValues>(p.format, values,
                                          small ? p.divisor.small_global : p.divisor.global);
}

template <int kWidth>
__device__ void ScaleTile(const GptqUnitRows& p, int64_t row0, UnitTile<kWidth>& tile) {
  constexpr int kValues = kWidth / kLanes;
  const int r = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  double values[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) values[i] = tile.values[r][lane * kValues + i];
  const auto group = static_cast<int>(p.format.grid_cols);
  const double scale = group == kWidth ? DividedScale<kLanes, kValues>(p, values)
                                       : DividedScale<kLanes / 2, kValues>(p, values);
  const int column = lane * kValues;
  if (column % group != 0) return;
  tile.scales[r][column / group] = scale;
  tile.factors[r][column / group] = RoundingFactor(scale);
  if (row0 + r < p.rows) {
    p.scales[(row0 + r) * (p.cols / group) + (p.first + column) / group] = scale;
  }
}

// Writes what the unit decodes to and its errors, in the tile and in the panel.
template <int kWidth, bool kTransform>
__device__ void StoreTile(const GptqUnitRows& p, int64_t row0, UnitTile<kWidth>& tile) {
  constexpr int kStep = kThreads / kWidth;
  const int c = static_cast<int>(threadIdx.x) % kWidth;
  const int r0 = static_cast<int>(threadIdx.x) / kWidth;
  const int first = kTransform ? c / p.block_size * p.block_size : 0;
  double seen[kRows / kStep] = {};
  if (kTransform) {
    for (int m = 0; m < p.block_size; ++m) {
      const double t = tile.block[first + m][c - first];
#pragma unroll
      for (int i = 0; i < kRows / kStep; ++i) {
        seen[i] = fma(tile.values[r0 + i * kStep][first + m], t, seen[i]);
      }
    }
  }
  const int position = tile.positions[c];
#pragma unroll
  for (int i = 0; i < kRows / kStep; ++i) {
    const int r = r0 + i * kStep;
    const int64_t at = (row0 + r) * p.cols + p.first + c;
    const double decoded = tile.values[r][c];
    if (!kTransform) seen[i] = decoded;
    double error = 0.0;
    if (row0 + r < p.rows) {
      error = p.target[at] - seen[i];
      p.decoded[at] = decoded;
      if (kTransform) p.dequantized[at] = seen[i];
      p.codes[at] = tile.codes[r][c];
    }
    tile.errors[position][r] = error;
  }
}

template <int kWidth>
__device__ void StoreErrors(const GptqUnitRows& p, int64_t row0, const UnitTile<kWidth>& tile) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kWidth; i += kThreads) {
    const int r = i / kWidth;
    const int position = i % kWidth;
    if (row0 + r >= p.rows) return;
    p.errors[(row0 + r) * p.panel_width + p.begin - p.panel_begin + position] =
        tile.errors[position][r];
  }
}

// updated += errors K for the panel's positions before the unit.
template <int kWidth>
__device__ void UpdatePanel(const GptqUnitRows& p, int64_t row0, const UnitTile<kWidth>& tile) {
  const int64_t before = p.begin - p.panel_begin;
  const int r0 = static_cast<int>(threadIdx.x) / kUpdatePairs * kUpdateRows;
  const int pair0 = static_cast<int>(threadIdx.x) % kUpdatePairs;
  for (int64_t column = 2 * pair0; column < before; column += 2 * kUpdatePairs) {
    const double* const k = p.factor + p.begin * p.cols + p.panel_begin + column;
    double2 sums[kUpdateRows] = {};
#pragma unroll 4
    for (int i = 0; i < kWidth; ++i) {
      const double2 factor = *reinterpret_cast<const double2*>(k + i * p.cols);
#pragma unroll
      for (int r = 0; r < kUpdateRows; r += 2) {
        const double2 error = *reinterpret_cast<const double2*>(&tile.errors[i][r0 + r]);
        sums[r].x = fma(error.x, factor.x, sums[r].x);
        sums[r].y = fma(error.x, factor.y, sums[r].y);
        sums[r + 1].x = fma(error.y, factor.x, sums[r + 1].x);
        sums[r + 1].y = fma(error.y, factor.y, sums[r + 1].y);
      }
    }
#pragma unroll
    for (int r = 0; r < kUpdateRows; ++r) {
      if (row0 + r0 + r >= p.rows) continue;
      auto* const to =
          reinterpret_cast<double2*>(p.updated + (row0 + r0 + r) * p.cols + p.panel_begin + column);
      const double2 was = *to;
      *to = {was.x + sums[r].x, was.y + sums[r].y};
    }
  }
}

template <int kWidth, bool kTransform>
__global__ void __launch_bounds__(kThreads) GptqUnitRowsKernel(GptqUnitRows p) {
  __shared__ UnitTile<kWidth> tile;
  const int64_t row0 = int64_t{blockIdx.x} * kRows;
  LoadUnit(p, row0, tile);
  if (kTransform) LoadBlocks(p, p.tw, tile);
  __syncthreads();
  TransformTile<kWidth, kTransform>(p, tile);
  __syncthreads();
  ScaleTile(p, row0, tile);
  if (kTransform) LoadBlocks(p, p.tx, tile);
  __syncthreads();
  if (threadIdx.x < kRows) {
    const auto r = static_cast<int>(threadIdx.x);
    RoundRow<kWidth, ElementKind::kE2m1>(
        p.format, kWidth, {tile.slots, tile.scale_slots, tile.coupling, p.negative_zeros},
        {tile.values[r], tile.codes[r], tile.scales[r], tile.factors[r]}, nullptr,
        [](int, double) {});
  }
  __syncthreads();
  StoreTile<kWidth, kTransform>(p, row0, tile);
  __syncthreads();
  StoreErrors(p, row0, tile);
  UpdatePanel(p, row0, tile);
}

bool IsE2m1(const FormatSpec& format) { return format.rule <= FormatSpec::Rule::kNvfp4Mse; }

}  // namespace

bool CanRoundUnitRows(const FormatSpec& format, int64_t width) {
  return IsE2m1(format) && ((width == 16 && format.grid_cols == 16) ||
                            (width == 32 && (format.grid_cols == 16 || format.grid_cols == 32)));
}

cudaError_t LaunchGptqUnitRows(cudaStream_t stream, const GptqUnitRows& unit) {
  if (!CanRoundUnitRows(unit.format, unit.width)) return cudaErrorInvalidValue;
  if (unit.rows == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((unit.rows + kRows - 1) / kRows);
  const auto launch = [&](auto kernel) {
    kernel<<<blocks, kThreads, 0, stream>>>(unit);
    return cudaGetLastError();
  };
  const bool transform = unit.block_size > 0;
  if (unit.width == 16) {
    return transform ? launch(GptqUnitRowsKernel<16, true>) : launch(GptqUnitRowsKernel<16, false>);
  }
  return transform ? launch(GptqUnitRowsKernel<32, true>) : launch(GptqUnitRowsKernel<32, false>);
}

}  // namespace quantd::compute
