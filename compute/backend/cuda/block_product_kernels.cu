#include "compute/backend/cuda/block_product.cuh"
#include "compute/backend/cuda/block_product_kernels.h"

namespace quantd::compute {
namespace {

// What becomes of a tile of from T^T. Called by all threads; columns beyond `col_end` and rows
// beyond the matrix hold zeros and are not stored.
struct StoreTile {
  double* to;

  __device__ void operator()(const TileSums& sums, int64_t rows, int64_t cols, int64_t row0,
                             int64_t col0, int64_t col_end, TileOperands& /*scratch*/) const {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const int64_t r = row0 + TileRow(i);
#pragma unroll
      for (int j = 0; j < kColsPerThread; ++j) {
        const int64_t c = col0 + TileCol(j);
        if (r < rows && c < col_end) to[r * cols + c] = sums[i][j];
      }
    }
  }
};

struct TakeAmax {
  unsigned long long* amax;  // its bits, which order like magnitudes

  __device__ void operator()(const TileSums& sums, int64_t, int64_t, int64_t, int64_t, int64_t,
                             TileOperands& /*scratch*/) const {
    double largest = 0.0;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
#pragma unroll
      for (int j = 0; j < kColsPerThread; ++j) largest = fmax(largest, fabs(sums[i][j]));
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
    }
    if (threadIdx.x % 32 == 0) {
      atomicMax(amax, static_cast<unsigned long long>(__double_as_longlong(largest)));
    }
  }
};

struct SumSquares {
  double* partial;  // row tiles x cols

  __device__ void operator()(const TileSums& sums, int64_t, int64_t cols, int64_t, int64_t col0,
                             int64_t col_end, TileOperands& scratch) const {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kColsPerThread; ++j) {
      double sum = 0.0;
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) sum += sums[i][j] * sums[i][j];
      scratch.rows[TileRow(0)][TileCol(j)] = sum;
    }
    __syncthreads();
    const int64_t c = col0 + threadIdx.x;
    if (threadIdx.x >= kTileCols || c >= col_end) return;
    double sum = 0.0;
    for (int r = 0; r < kTileRows / kRowsPerThread; ++r) sum += scratch.rows[r][threadIdx.x];
    partial[blockIdx.y * cols + c] = sum;
  }
};

// Block x: kTileCols columns of one span; block y: kTileRows rows.
template <bool kTransposed, typename T, typename Finish>
__global__ void __launch_bounds__(kTileThreads)
    BlockProductKernel(BlockStackView<T> stack, int64_t rows, int64_t cols, const double* from,
                       Finish finish) {
  __shared__ TileOperands tile;
  const int tiles = (stack.span + kTileCols - 1) / kTileCols;
  const int64_t first = int64_t{blockIdx.x / tiles} * stack.span;
  const int n0 = static_cast<int>(blockIdx.x % tiles) * kTileCols;
  const int64_t row0 = int64_t{blockIdx.y} * kTileRows;
  const int64_t span_end = min(first + stack.span, cols);
  TileSums sums = {};
  for (int k0 = 0; k0 < stack.span; k0 += kTileCols) {
    if (k0 > 0) __syncthreads();
    LoadRows(from, rows, cols, row0, first + k0, span_end - first - k0, tile);
    LoadBlock<kTransposed>(stack, cols, first, k0, n0, tile);
    __syncthreads();
    MultiplyTile(tile, sums);
  }
  finish(sums, rows, cols, row0, first + n0, span_end, tile);
}

template <bool kTransposed, typename T, typename Finish>
cudaError_t LaunchBlockProduct(cudaStream_t stream, int64_t block_size, const T* blocks,
                               int64_t rows, int64_t cols, const double* from, Finish finish) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  const BlockStackView<T> stack = ViewBlocks(blocks, block_size);
  const int64_t tiles = (stack.span + kTileCols - 1) / kTileCols;
  const int64_t spans = (cols + stack.span - 1) / stack.span;
  const dim3 grid(static_cast<unsigned>(spans * tiles), static_cast<unsigned>(TileRowCount(rows)));
  BlockProductKernel<kTransposed, T>
      <<<grid, kTileThreads, 0, stream>>>(stack, rows, cols, from, finish);
  return cudaGetLastError();
}

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

int64_t TileRowCount(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

cudaError_t LaunchApplyBlocks(cudaStream_t stream, int64_t block_size, const double* blocks,
                              int64_t rows, int64_t cols, const double* from, double* to) {
  return LaunchBlockProduct<false>(stream, block_size, blocks, rows, cols, from, StoreTile{to});
}
cudaError_t LaunchApplyBlocks(cudaStream_t stream, int64_t block_size, const float* blocks,
                              int64_t rows, int64_t cols, const double* from, double* to) {
  return LaunchBlockProduct<false>(stream, block_size, blocks, rows, cols, from, StoreTile{to});
}
cudaError_t LaunchApplyTransposedBlocks(cudaStream_t stream, int64_t block_size,
                                        const float* blocks, int64_t rows, int64_t cols,
                                        const double* from, double* to) {
  return LaunchBlockProduct<true>(stream, block_size, blocks, rows, cols, from, StoreTile{to});
}

cudaError_t LaunchTransformedAmax(cudaStream_t stream, int64_t block_size, const double* blocks,
                                  int64_t rows, int64_t cols, const double* from, double* amax) {
  const cudaError_t code = cudaMemsetAsync(amax, 0, sizeof(double), stream);
  if (code != cudaSuccess) return code;
  return LaunchBlockProduct<false>(stream, block_size, blocks, rows, cols, from,
                                   TakeAmax{reinterpret_cast<unsigned long long*>(amax)});
}

cudaError_t LaunchTransformedColumnSquares(cudaStream_t stream, int64_t block_size,
                                           const double* blocks, int64_t rows, int64_t cols,
                                           const double* from, double* partial, double* to) {
  const cudaError_t code =
      LaunchBlockProduct<false>(stream, block_size, blocks, rows, cols, from, SumSquares{partial});
  if (code != cudaSuccess || cols == 0) return code;
  SumSlicesKernel<<<ColumnBlocks(cols), kColumnThreads, 0, stream>>>(TileRowCount(rows), cols,
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
