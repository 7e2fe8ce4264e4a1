#include "compute/backend/cuda/block_product_kernels.h"
#include "compute/backend/cuda/block_reduce.cuh"
#include "compute/backend/cuda/transform_tile.cuh"

namespace quantd::compute {
namespace {

constexpr int kRowsOfBlock = 256;  // that one block of threads takes of a span

// --- Blocks of up to 32 -------------------------------------------------------------------------

constexpr int kSpanThreads = 128;
constexpr int kSpanWarps = kSpanThreads / 32;

// Calls body(row0) for the tiles of this warp.
template <typename Body>
__device__ void ForEachTile(int64_t rows, Body body) {
  const int64_t begin = int64_t{blockIdx.y} * kRowsOfBlock;
  const int64_t end = min(begin + kRowsOfBlock, rows);
  for (int64_t row0 = begin + threadIdx.x / 32 * kTileHeight; row0 < end;
       row0 += kSpanWarps * kTileHeight) {
    body(row0);
  }
}

template <bool kTransposed, typename T>
__global__ void __launch_bounds__(kSpanThreads)
    ApplySpansKernel(SpanBlocks<T> blocks, int64_t rows, int64_t cols, const double* from,
                     double* to) {
  __shared__ BlockFragments fragments;
  const int64_t col0 = int64_t{blockIdx.x} * kSpan;
  FillFragments<kTransposed>(blocks, cols, col0, fragments);
  __syncthreads();
  ForEachTile(rows, [&](int64_t row0) {
    const WarpTile tile = LoadTile(from, rows, cols, row0, col0);
    StoreTile(Multiply(tile, fragments), rows, cols, row0, col0, to);
  });
}

__device__ void RaiseAmax(double value, unsigned long long* amax) {
  value = OverWarp(value, MaxOf());
  // Magnitudes order like their bits.
  if (threadIdx.x % 32 == 0) {
    atomicMax(amax, static_cast<unsigned long long>(__double_as_longlong(value)));
  }
}

__global__ void __launch_bounds__(kSpanThreads)
    SpansAmaxKernel(SpanBlocks<double> blocks, int64_t rows, int64_t cols, const double* from,
                    unsigned long long* amax) {
  __shared__ BlockFragments fragments;
  const int64_t col0 = int64_t{blockIdx.x} * kSpan;
  FillFragments<false>(blocks, cols, col0, fragments);
  __syncthreads();
  double largest = 0.0;
  ForEachTile(rows, [&](int64_t row0) {
    const WarpTile product = Multiply(LoadTile(from, rows, cols, row0, col0), fragments);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < kRowValues; ++k) largest = fmax(largest, fabs(product.v[i][k]));
    }
  });
  RaiseAmax(largest, amax);
}

// partial[y, c]: the sum of squares of block y of the rows.
__global__ void __launch_bounds__(kSpanThreads)
    SpansSquaresKernel(SpanBlocks<double> blocks, int64_t rows, int64_t cols, const double* from,
                       double* partial) {
  __shared__ BlockFragments fragments;
  __shared__ double sums[kSpanWarps][kSpan];
  const int64_t col0 = int64_t{blockIdx.x} * kSpan;
  FillFragments<false>(blocks, cols, col0, fragments);
  __syncthreads();
  double squares[kRowValues] = {};
  ForEachTile(rows, [&](int64_t row0) {
    const WarpTile product = Multiply(LoadTile(from, rows, cols, row0, col0), fragments);
#pragma unroll
    for (int k = 0; k < kRowValues; ++k) {
      squares[k] += product.v[0][k] * product.v[0][k] + product.v[1][k] * product.v[1][k];
    }
  });
#pragma unroll
  for (int k = 0; k < kRowValues; ++k) {
    double sum = squares[k];
    for (int lanes = 16; lanes >= 4; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (threadIdx.x % 32 < 4) sums[threadIdx.x / 32][LaneColumn(k / 2) + k % 2] = sum;
  }
  __syncthreads();
  const int64_t c = col0 + threadIdx.x;
  if (threadIdx.x >= kSpan || c >= cols) return;
  double sum = 0.0;
  for (int warp = 0; warp < kSpanWarps; ++warp) sum += sums[warp][threadIdx.x];
  partial[blockIdx.y * cols + c] = sum;
}

// --- Blocks of any size -------------------------------------------------------------------------

// A tile of rows times a square of the block at a time; a thread has kRowsPerThread x
// kColsPerThread of its elements.
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

__device__ int TileRow(int i) { return static_cast<int>(threadIdx.x) / 8 + 16 * i; }
__device__ int TileCol(int j) { return static_cast<int>(threadIdx.x) % 8 + 8 * j; }

// rows[r][k] = from[row0 + r, col0 + k] for k < width, zeros beyond `rows` and `width`.
__device__ void LoadRows(const double* from, int64_t rows, int64_t cols, int64_t row0, int64_t col0,
                         int width, TileOperands& tile) {
  for (int at = threadIdx.x; at < kTileRows * kTileCols; at += kTileThreads) {
    const int r = at / kTileCols;
    const int k = at % kTileCols;
    const bool inside = row0 + r < rows && k < width;
    tile.rows[r][k] = inside ? from[(row0 + r) * cols + col0 + k] : 0.0;
  }
}

// block[k][n] = T[n0 + n, k0 + k], or with kTransposed T[k0 + k, n0 + n]; zeros beyond T.
template <bool kTransposed, typename T>
__device__ void LoadBlock(const T* block, int size, int k0, int n0, TileOperands& tile) {
  for (int at = threadIdx.x; at < kTileCols * kTileCols; at += kTileThreads) {
    const int slow = at / kTileCols;
    const int fast = at % kTileCols;
    const int row = (kTransposed ? k0 : n0) + slow;
    const int col = (kTransposed ? n0 : k0) + fast;
    const double value = row < size && col < size ? block[row * size + col] : 0.0;
    (kTransposed ? tile.block[slow][fast] : tile.block[fast][slow]) = value;
  }
}

// sums += rows block over kTileCols of k.
__device__ void MultiplyTile(const TileOperands& tile, TileSums& sums) {
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

// A tile of from T^T. By the whole block of threads; zeros beyond the rows and beyond column `end`.
template <bool kTransposed, typename T>
__device__ void MultiplyRows(const T* blocks, int size, int64_t rows, int64_t cols,
                             const double* from, int64_t row0, int64_t first, int n0,
                             TileOperands& tile, TileSums& sums) {
  for (int k0 = 0; k0 < size; k0 += kTileCols) {
    __syncthreads();  // the tile of the last step or row
    LoadRows(from, rows, cols, row0, first + k0, size - k0, tile);
    LoadBlock<kTransposed>(blocks + first * size, size, k0, n0, tile);
    __syncthreads();
    MultiplyTile(tile, sums);
  }
}

// What becomes of the tiles of kRowsOfBlock rows: Add takes one after the other, Finish ends it.
struct StoreTiles {
  double* to;

  __device__ void Add(const TileSums& sums, int64_t rows, int64_t cols, int64_t row0, int64_t col0,
                      int width) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const int64_t r = row0 + TileRow(i);
#pragma unroll
      for (int j = 0; j < kColsPerThread; ++j) {
        if (r < rows && TileCol(j) < width) to[r * cols + col0 + TileCol(j)] = sums[i][j];
      }
    }
  }
  __device__ void Finish(int64_t, int64_t, int, TileOperands&) {}
};

struct TakeAmax {
  unsigned long long* amax;
  double largest = 0.0;

  __device__ void Add(const TileSums& sums, int64_t, int64_t, int64_t, int64_t, int) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
#pragma unroll
      for (int j = 0; j < kColsPerThread; ++j) largest = fmax(largest, fabs(sums[i][j]));
    }
  }
  __device__ void Finish(int64_t, int64_t, int, TileOperands&) { RaiseAmax(largest, amax); }
};

struct SumSquares {
  double* partial;
  double squares[kColsPerThread] = {};

  __device__ void Add(const TileSums& sums, int64_t, int64_t, int64_t, int64_t, int) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
#pragma unroll
      for (int j = 0; j < kColsPerThread; ++j) squares[j] += sums[i][j] * sums[i][j];
    }
  }
  __device__ void Finish(int64_t cols, int64_t col0, int width, TileOperands& scratch) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kColsPerThread; ++j) scratch.rows[TileRow(0)][TileCol(j)] = squares[j];
    __syncthreads();
    if (static_cast<int>(threadIdx.x) >= min(kTileCols, width)) return;
    double sum = 0.0;
    for (int r = 0; r < kTileThreads / 8; ++r) sum += scratch.rows[r][threadIdx.x];
    partial[blockIdx.y * cols + col0 + threadIdx.x] = sum;
  }
};

// Block x: kTileCols columns of one transform block; block y: kRowsOfBlock rows.
template <bool kTransposed, typename T, typename Sink>
__global__ void __launch_bounds__(kTileThreads)
    WideBlocksKernel(const T* blocks, int size, int64_t rows, int64_t cols, const double* from,
                     Sink sink) {
  __shared__ TileOperands tile;
  const int tiles = (size + kTileCols - 1) / kTileCols;
  const int64_t first = int64_t{blockIdx.x / tiles} * size;
  const int n0 = static_cast<int>(blockIdx.x % tiles) * kTileCols;
  const int64_t begin = int64_t{blockIdx.y} * kRowsOfBlock;
  const int64_t end = min(begin + kRowsOfBlock, rows);
  for (int64_t row0 = begin; row0 < end; row0 += kTileRows) {
    TileSums sums = {};
    MultiplyRows<kTransposed>(blocks, size, rows, cols, from, row0, first, n0, tile, sums);
    sink.Add(sums, rows, cols, row0, first + n0, size - n0);
  }
  sink.Finish(cols, first + n0, size - n0, tile);
}

// --- Launching ----------------------------------------------------------------------------------

bool IsSpanned(int64_t block_size, int64_t cols) {
  return kSpan % block_size == 0 && cols % 2 == 0;
}

unsigned RowBlocks(int64_t rows) { return static_cast<unsigned>(RowBlockCount(rows)); }
dim3 SpanGrid(int64_t rows, int64_t cols) {
  return {static_cast<unsigned>((cols + kSpan - 1) / kSpan), RowBlocks(rows), 1};
}

template <bool kTransposed, typename T, typename Sink>
cudaError_t LaunchWideBlocks(cudaStream_t stream, int64_t block_size, const T* blocks, int64_t rows,
                             int64_t cols, const double* from, Sink sink) {
  const int64_t tiles = (block_size + kTileCols - 1) / kTileCols;
  const dim3 grid(static_cast<unsigned>(cols / block_size * tiles), RowBlocks(rows));
  WideBlocksKernel<kTransposed, T><<<grid, kTileThreads, 0, stream>>>(
      blocks, static_cast<int>(block_size), rows, cols, from, sink);
  return cudaGetLastError();
}

template <bool kTransposed, typename T>
cudaError_t LaunchApply(cudaStream_t stream, int64_t block_size, const T* blocks, int64_t rows,
                        int64_t cols, const double* from, double* to) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  if (!IsSpanned(block_size, cols)) {
    return LaunchWideBlocks<kTransposed>(stream, block_size, blocks, rows, cols, from,
                                         StoreTiles{to});
  }
  const SpanBlocks<T> spans = {blocks, static_cast<int>(block_size)};
  ApplySpansKernel<kTransposed>
      <<<SpanGrid(rows, cols), kSpanThreads, 0, stream>>>(spans, rows, cols, from, to);
  return cudaGetLastError();
}

// --- Columns ------------------------------------------------------------------------------------

__global__ void SumSlicesKernel(int64_t slices, int64_t cols, const double* partial, double* to) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= cols) return;
  double sum = 0.0;
  for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * cols + c];
  to[c] = sum;
}

// One warp a column c: the products M t are spread over its lanes.
__global__ void TransformedDiagonalKernel(int64_t size, const float* blocks, int64_t cols,
                                          const double* moment, double* to) {
  const int64_t c = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (c >= cols) return;
  const float* t = blocks + c * size;
  const double* m = moment + c / size * size * size;
  double sum = 0.0;
  for (int64_t k = lane; k < size; k += 32) {
    double product = 0.0;
    for (int64_t j = 0; j < size; ++j) product += static_cast<double>(t[j]) * m[j * size + k];
    sum += static_cast<double>(t[k]) * product;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (lane == 0) to[c] = sum;
}

__global__ void BlockDiagonalKernel(int64_t size, int64_t cols, const double* moment, double* to) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c < cols) to[c] = moment[c * size + c % size];
}

constexpr int kColumnThreads = 128;
unsigned ColumnBlocks(int64_t count) {
  return static_cast<unsigned>((count + kColumnThreads - 1) / kColumnThreads);
}

}  // namespace

cudaError_t LaunchApplyBlocks(cudaStream_t stream, int64_t block_size, const double* blocks,
                              int64_t rows, int64_t cols, const double* from, double* to) {
  return LaunchApply<false>(stream, block_size, blocks, rows, cols, from, to);
}
cudaError_t LaunchApplyBlocks(cudaStream_t stream, int64_t block_size, const float* blocks,
                              int64_t rows, int64_t cols, const double* from, double* to) {
  return LaunchApply<false>(stream, block_size, blocks, rows, cols, from, to);
}
cudaError_t LaunchApplyTransposedBlocks(cudaStream_t stream, int64_t block_size,
                                        const float* blocks, int64_t rows, int64_t cols,
                                        const double* from, double* to) {
  return LaunchApply<true>(stream, block_size, blocks, rows, cols, from, to);
}

cudaError_t LaunchTransformedAmax(cudaStream_t stream, int64_t block_size, const double* blocks,
                                  int64_t rows, int64_t cols, const double* from, double* amax) {
  const cudaError_t code = cudaMemsetAsync(amax, 0, sizeof(double), stream);
  if (code != cudaSuccess || rows == 0 || cols == 0) return code;
  auto* const bits = reinterpret_cast<unsigned long long*>(amax);
  if (!IsSpanned(block_size, cols)) {
    return LaunchWideBlocks<false>(stream, block_size, blocks, rows, cols, from, TakeAmax{bits});
  }
  const SpanBlocks<double> spans = {blocks, static_cast<int>(block_size)};
  SpansAmaxKernel<<<SpanGrid(rows, cols), kSpanThreads, 0, stream>>>(spans, rows, cols, from, bits);
  return cudaGetLastError();
}

int64_t RowBlockCount(int64_t rows) { return (rows + kRowsOfBlock - 1) / kRowsOfBlock; }

cudaError_t LaunchTransformedColumnSquares(cudaStream_t stream, int64_t block_size,
                                           const double* blocks, int64_t rows, int64_t cols,
                                           const double* from, double* partial, double* to) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  cudaError_t code = cudaSuccess;
  if (IsSpanned(block_size, cols)) {
    const SpanBlocks<double> spans = {blocks, static_cast<int>(block_size)};
    SpansSquaresKernel<<<SpanGrid(rows, cols), kSpanThreads, 0, stream>>>(spans, rows, cols, from,
                                                                          partial);
    code = cudaGetLastError();
  } else {
    code =
        LaunchWideBlocks<false>(stream, block_size, blocks, rows, cols, from, SumSquares{partial});
  }
  if (code != cudaSuccess) return code;
  SumSlicesKernel<<<ColumnBlocks(cols), kColumnThreads, 0, stream>>>(RowBlockCount(rows), cols,
                                                                     partial, to);
  return cudaGetLastError();
}

cudaError_t LaunchTransformedDiagonal(cudaStream_t stream, int64_t block_size, const float* blocks,
                                      int64_t cols, const double* moment, double* to) {
  if (cols == 0) return cudaSuccess;
  TransformedDiagonalKernel<<<ColumnBlocks(cols * 32), kColumnThreads, 0, stream>>>(
      block_size, blocks, cols, moment, to);
  return cudaGetLastError();
}

cudaError_t LaunchBlockDiagonal(cudaStream_t stream, int64_t block_size, int64_t cols,
                                const double* moment, double* to) {
  if (cols == 0) return cudaSuccess;
  BlockDiagonalKernel<<<ColumnBlocks(cols), kColumnThreads, 0, stream>>>(block_size, cols, moment,
                                                                         to);
  return cudaGetLastError();
}

}  // namespace quantd::compute
