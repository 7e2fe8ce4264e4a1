#pragma once

#include <cstdint>

// Rows times a block transform on float64 tensor cores, a warp at a time, everything in registers
// but the block. What transforming, rounding and measuring with blocks of up to 32 share.
//
// A warp holds 16 rows x 32 columns of a matrix. Lane 4g + q has rows g and g + 8, and of each the
// columns 8t + 2q + j at index 2t + j. That is how the cores leave a product; since a sum may run
// over k in any order, it serves as their left operand as well: step 2t + j takes column 8t + 2q +
// j from lane q.
namespace quantd::compute {

constexpr int kSpan = 32;
constexpr int kTileHeight = 16;
constexpr int kRowValues = 8;  // of a row in a lane

struct WarpTile {
  double v[2][kRowValues];
};

// The right operand in the order in which lanes read it: step of k, 8 columns, lane.
struct BlockFragments {
  double b[kSpan / 4][kSpan / 8][32];
};

// Blocks of a size that divides kSpan; those of a span lie on its diagonal.
template <typename T>
struct SpanBlocks {
  const T* blocks;  // C/B x B x B
  int size;
};

__device__ inline int LaneColumn(int t) { return 8 * t + 2 * (static_cast<int>(threadIdx.x) % 4); }
__device__ inline int LaneRow(int i) { return static_cast<int>(threadIdx.x) % 32 / 4 + 8 * i; }

// b[k][n] = T[n, k], or with kTransposed T[k, n], of the span that begins in column `first`; zeros
// beyond the `cols` columns. By the whole block of threads.
template <bool kTransposed, typename T>
__device__ inline void FillFragments(const SpanBlocks<T>& of, int64_t cols, int64_t first,
                                     BlockFragments& to) {
  const auto end = static_cast<int>(min(int64_t{kSpan}, cols - first));
  const int mask = of.size - 1;
  for (int at = threadIdx.x; at < kSpan * kSpan; at += blockDim.x) {
    const int row = at / kSpan;  // of T
    const int col = at % kSpan;
    double value = 0.0;
    if (row < end && col < end && ((row ^ col) & ~mask) == 0) {
      value = of.blocks[(first + row) * of.size + (col & mask)];
    }
    const int k = kTransposed ? row : col;
    const int n = kTransposed ? col : row;
    to.b[k / 8 * 2 + k % 2][n / 8][n % 8 * 4 + k % 8 / 2] = value;
  }
}

// Zeros beyond the matrix.
__device__ inline WarpTile LoadTile(const double* from, int64_t rows, int64_t cols, int64_t row0,
                                    int64_t col0) {
  WarpTile tile;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t r = row0 + LaneRow(i);
#pragma unroll
    for (int t = 0; t < kRowValues / 2; ++t) {
      const int64_t c = col0 + LaneColumn(t);
      double2 pair = {0.0, 0.0};
      // Spans of an even number of columns: a pair is inside or outside, and aligned.
      if (r < rows && c < cols) pair = *reinterpret_cast<const double2*>(from + r * cols + c);
      tile.v[i][2 * t] = pair.x;
      tile.v[i][2 * t + 1] = pair.y;
    }
  }
  return tile;
}

__device__ inline void StoreTile(const WarpTile& tile, int64_t rows, int64_t cols, int64_t row0,
                                 int64_t col0, double* to) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t r = row0 + LaneRow(i);
#pragma unroll
    for (int t = 0; t < kRowValues / 2; ++t) {
      const int64_t c = col0 + LaneColumn(t);
      if (r < rows && c < cols) {
        *reinterpret_cast<double2*>(to + r * cols + c) = {tile.v[i][2 * t], tile.v[i][2 * t + 1]};
      }
    }
  }
}

// The tile times the fragments' matrix.
__device__ inline WarpTile Multiply(const WarpTile& tile, const BlockFragments& by) {
  WarpTile product = {};
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int step = 0; step < kSpan / 4; ++step) {
#pragma unroll
    for (int n = 0; n < kSpan / 8; ++n) {
      const double b = by.b[step][n][lane];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+d"(product.v[i][2 * n]), "+d"(product.v[i][2 * n + 1])
            : "d"(tile.v[i][step]), "d"(b));
      }
    }
  }
  return product;
}

}  // namespace quantd::compute
