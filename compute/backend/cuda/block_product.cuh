#pragma once

#include <cstdint>

// The product of a tile of rows with one block transform, float64, in one thread block: what
// transforming, rounding and measuring share. Every sum runs over k upwards with fused
// multiply-adds, like the CPU's.
namespace quantd::compute {

// Rows and columns of a tile; a thread computes kTileRows / 16 x kTileCols / 8 of its elements.
constexpr int kTileRows = 64;
constexpr int kTileCols = 32;
constexpr int kTileThreads = 128;
constexpr int kRowsPerThread = kTileRows / 16;
constexpr int kColsPerThread = kTileCols / 8;
constexpr int kTilePitch = kTileCols + 1;  // keeps columns in different banks

struct TileOperands {
  double rows[kTileRows][kTilePitch];   // [r][k]
  double block[kTileCols][kTilePitch];  // [k][n]
};
using TileSums = double[kRowsPerThread][kColsPerThread];

// A stack of blocks, C/B x B x B. Blocks smaller than a tile are taken together: `span` is B or, if
// B divides it, the tile's width; spans are block diagonal.
template <typename T>
struct BlockStackView {
  const T* blocks;
  int size;  // B
  int span;
  int mask;  // & of a column of the span: its column in the block
};
template <typename T>
BlockStackView<T> ViewBlocks(const T* blocks, int64_t block_size) {
  const auto size = static_cast<int>(block_size);
  if (kTileCols % size != 0) return {blocks, size, size, ~0};
  return {blocks, size, kTileCols, size - 1};  // a power of two
}

__device__ inline int TileRow(int i) { return static_cast<int>(threadIdx.x) / 8 + 16 * i; }
__device__ inline int TileCol(int j) { return static_cast<int>(threadIdx.x) % 8 + 8 * j; }

// rows[r][k] = from[row0 + r, col0 + k] for k < width, zeros beyond `rows` and `width`.
__device__ inline void LoadRows(const double* from, int64_t rows, int64_t cols, int64_t row0,
                                int64_t col0, int64_t width, TileOperands& tile) {
  for (int at = threadIdx.x; at < kTileRows * kTileCols; at += kTileThreads) {
    const int r = at / kTileCols;
    const int k = at % kTileCols;
    const bool inside = row0 + r < rows && k < width;
    tile.rows[r][k] = inside ? from[(row0 + r) * cols + col0 + k] : 0.0;
  }
}

// block[k][n] = T[n0 + n, k0 + k], or with kTransposed T[k0 + k, n0 + n], of the span that begins
// in column `first`; zeros beyond the span and the `cols` columns.
template <bool kTransposed, typename T>
__device__ inline void LoadBlock(const BlockStackView<T>& stack, int64_t cols, int64_t first,
                                 int k0, int n0, TileOperands& tile) {
  const auto end = static_cast<int>(min(int64_t{stack.span}, cols - first));
  for (int at = threadIdx.x; at < kTileCols * kTileCols; at += kTileThreads) {
    const int slow = at / kTileCols;
    const int fast = at % kTileCols;
    const int i = (kTransposed ? k0 : n0) + slow;  // row of T
    const int j = (kTransposed ? n0 : k0) + fast;
    double value = 0.0;
    if (i < end && j < end && ((i ^ j) & ~stack.mask) == 0) {
      value = stack.blocks[(first + i) * stack.size + (j & stack.mask)];
    }
    (kTransposed ? tile.block[slow][fast] : tile.block[fast][slow]) = value;
  }
}

// sums += rows block over kTileCols of k.
__device__ inline void MultiplyTile(const TileOperands& tile, TileSums& sums) {
#pragma unroll 8
  for (int k = 0; k < kTileCols; ++k) {
    double a[kRowsPerThread];
    double b[kColsPerThread];
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) a[i] = tile.rows[TileRow(i)][k];
#pragma unroll
    for (int j = 0; j < kColsPerThread; ++j) b[j] = tile.block[k][TileCol(j)];
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
#pragma unroll
      for (int j = 0; j < kColsPerThread; ++j) sums[i][j] = __fma_rn(a[i], b[j], sums[i][j]);
    }
  }
}

}  // namespace quantd::compute
