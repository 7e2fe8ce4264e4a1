#include <algorithm>

#include "compute/backend/cuda/gram_kernels.h"
#include "compute/backend/cuda/gram_tiles.cuh"

namespace quantd::compute {
namespace {

constexpr int kThreads = 256;
constexpr int kSliceRows = 1024;  // kSliceTokens
constexpr int kSquareParts = 8;   // of a slice, summed apart

__device__ double Widen(uint32_t bits) { return __uint_as_float(bits << 16); }

// Offset of element (i, j), j <= i, of the matrix in the sum.
__device__ int64_t ElementOf(int side, int64_t i, int64_t j) {
  const int p = static_cast<int>(i / kGramTile);
  const int q = static_cast<int>(j / kGramTile);
  GramPlace place = {static_cast<int>(i % kGramTile), static_cast<int>(j % kGramTile)};
  if (IsGramTileTransposed(side, p, q)) place = {place.column, place.row};
  return GramTileIndex(p, q) * kGramTileElements + GramOffsetOf(place);
}

__global__ void ReadRowsKernel(int64_t cols, int64_t first, int64_t count, const double* rows,
                               double* sum, double* diagonal) {
  const int side = GramTilesASide(cols);
  for (int64_t r = blockIdx.y; r < count; r += gridDim.y) {
    const int64_t i = first + r;
    for (int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; j <= i;
         j += int64_t{gridDim.x} * blockDim.x) {
      const double value = rows[r * cols + j];
      sum[ElementOf(side, i, j)] = value;
      if (i == j) diagonal[i] = value;
    }
  }
}

__global__ void WriteRowsKernel(int64_t cols, int64_t first, int64_t count, const double* sum,
                                const double* diagonal, double* rows) {
  const int side = GramTilesASide(cols);
  for (int64_t r = blockIdx.y; r < count; r += gridDim.y) {
    const int64_t i = first + r;
    for (int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; j < cols;
         j += int64_t{gridDim.x} * blockDim.x) {
      rows[r * cols + j] = i == j ? diagonal[i] : sum[ElementOf(side, max(i, j), min(i, j))];
    }
  }
}

// A block a tile: tile row first / kGramTile + blockIdx.y, tile column first / kGramTile +
// blockIdx.x.
template <typename T>
__global__ void AddPanelKernel(int64_t cols, int64_t first, int64_t width, const T* panel,
                               double* sum, double* diagonal) {
  const int side = GramTilesASide(cols);
  const int p = static_cast<int>(first / kGramTile) + blockIdx.y;
  const int q = static_cast<int>(first / kGramTile) + blockIdx.x;
  if (p < q) return;
  const bool transposed = IsGramTileTransposed(side, p, q);
  double* const tile = sum + GramTileIndex(p, q) * kGramTileElements;
  for (int offset = threadIdx.x; offset < kGramTileElements; offset += blockDim.x) {
    const GramPlace place = GramPlaceOf(offset);
    const int64_t i = int64_t{p} * kGramTile + (transposed ? place.column : place.row);
    const int64_t j = int64_t{q} * kGramTile + (transposed ? place.row : place.column);
    if (i >= cols || j >= first + width) continue;
    const double value = panel[(i - first) * width + j - first];
    tile[offset] += value;
    if (diagonal != nullptr && i == j) diagonal[i] += value;
  }
}

template <typename T>
cudaError_t AddPanel(cudaStream_t stream, int64_t cols, int64_t first, int64_t width,
                     const T* panel, double* sum, double* diagonal) {
  const dim3 grid(GramTilesASide(width), GramTilesASide(cols - first));
  AddPanelKernel<<<grid, kThreads, 0, stream>>>(cols, first, width, panel, sum, diagonal);
  return cudaGetLastError();
}

// Two columns a thread; of a slice's rows, part threadIdx.y.
__global__ void SquaresKernel(int64_t cols, int64_t pitch, const uint16_t* rows, double* partial) {
  __shared__ double parts[kSquareParts][32][2];
  const int64_t column = (int64_t{blockIdx.x} * 32 + threadIdx.x) * 2;
  const int64_t slice = blockIdx.y;
  constexpr int kRows = kSliceRows / kSquareParts;
  double even = 0.0;
  double odd = 0.0;
  if (column < cols) {
    const uint16_t* from = rows + (slice * kSliceRows + threadIdx.y * kRows) * pitch + column;
#pragma unroll 8
    for (int r = 0; r < kRows; ++r) {
      const uint32_t both = *reinterpret_cast<const uint32_t*>(from + r * pitch);
      const double a = Widen(both & 0xffff);
      const double b = Widen(both >> 16);
      even += a * a;
      odd += b * b;
    }
  }
  parts[threadIdx.y][threadIdx.x][0] = even;
  parts[threadIdx.y][threadIdx.x][1] = odd;
  __syncthreads();
  if (threadIdx.y > 1) return;
  const int64_t own = column + threadIdx.y;
  if (own >= cols) return;
  double total = 0.0;
  for (int part = 0; part < kSquareParts; ++part) total += parts[part][threadIdx.x][threadIdx.y];
  partial[slice * cols + own] = total;
}

__global__ void AddSquaresKernel(int64_t cols, int64_t slices, const double* partial,
                                 double* diagonal) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= cols) return;
  double total = diagonal[c];
  for (int64_t s = 0; s < slices; ++s) total += partial[s * cols + c];
  diagonal[c] = total;
}

__global__ void WidenRowsKernel(int64_t rows, int64_t cols, int64_t pitch, const uint16_t* from,
                                double* to) {
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    for (int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; c < cols;
         c += int64_t{gridDim.x} * blockDim.x) {
      to[r * cols + c] = Widen(from[r * pitch + c]);
    }
  }
}

// A row of blocks for each row.
dim3 RowGrid(int64_t rows, int64_t cols) {
  return dim3(static_cast<unsigned>(std::min<int64_t>((cols + kThreads - 1) / kThreads, 1024)),
              static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
}

}  // namespace

cudaError_t LaunchReadGramRows(cudaStream_t stream, int64_t cols, int64_t first, int64_t count,
                               const double* rows, double* sum, double* diagonal) {
  ReadRowsKernel<<<RowGrid(count, cols), kThreads, 0, stream>>>(cols, first, count, rows, sum,
                                                                diagonal);
  return cudaGetLastError();
}

cudaError_t LaunchWriteGramRows(cudaStream_t stream, int64_t cols, int64_t first, int64_t count,
                                const double* sum, const double* diagonal, double* rows) {
  WriteRowsKernel<<<RowGrid(count, cols), kThreads, 0, stream>>>(cols, first, count, sum, diagonal,
                                                                 rows);
  return cudaGetLastError();
}

cudaError_t LaunchAddGramPanel(cudaStream_t stream, int64_t cols, int64_t first, int64_t width,
                               const float* panel, double* sum) {
  return AddPanel(stream, cols, first, width, panel, sum, nullptr);
}

cudaError_t LaunchAddGramPanel(cudaStream_t stream, int64_t cols, int64_t first, int64_t width,
                               const double* panel, double* sum, double* diagonal) {
  return AddPanel(stream, cols, first, width, panel, sum, diagonal);
}

cudaError_t LaunchAddGramSquares(cudaStream_t stream, int64_t cols, int64_t pitch, int64_t slices,
                                 const uint16_t* rows, double* partial, double* diagonal) {
  const dim3 grid(static_cast<unsigned>((cols + 63) / 64), static_cast<unsigned>(slices));
  SquaresKernel<<<grid, dim3(32, kSquareParts), 0, stream>>>(cols, pitch, rows, partial);
  if (const cudaError_t code = cudaGetLastError(); code != cudaSuccess) return code;
  AddSquaresKernel<<<static_cast<unsigned>((cols + kThreads - 1) / kThreads), kThreads, 0,
                     stream>>>(cols, slices, partial, diagonal);
  return cudaGetLastError();
}

cudaError_t LaunchWidenRows(cudaStream_t stream, int64_t rows, int64_t cols, int64_t pitch,
                            const uint16_t* from, double* to) {
  if (rows == 0) return cudaSuccess;
  WidenRowsKernel<<<RowGrid(rows, cols), kThreads, 0, stream>>>(rows, cols, pitch, from, to);
  return cudaGetLastError();
}

}  // namespace quantd::compute
