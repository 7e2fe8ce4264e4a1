#include <algorithm>

#include "compute/backend/cuda/gptq_kernels.h"
#include "compute/backend/cuda/gptq_rounding.cuh"

namespace quantd::compute {
namespace {

constexpr int kThreads = 256;

unsigned BlocksFor(int64_t count) {
  constexpr int64_t kMost = 132 * 32;
  return static_cast<unsigned>(std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, kMost));
}

__device__ int64_t FirstElement() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ int64_t ElementStride() { return int64_t{gridDim.x} * blockDim.x; }

// body(i) for i < count, each once.
template <typename Body>
__global__ void __launch_bounds__(kThreads) ForEachKernel(int64_t count, Body body) {
  for (int64_t i = FirstElement(); i < count; i += ElementStride()) body(i);
}

template <typename Body>
cudaError_t ForEach(cudaStream_t stream, int64_t count, const Body& body) {
  if (count == 0) return cudaSuccess;
  ForEachKernel<<<BlocksFor(count), kThreads, 0, stream>>>(count, body);
  return cudaGetLastError();
}

struct ArrangeMoment {
  int64_t cols;
  const double* moment;
  const int* arranged;
  double added;
  double dead;
  double* to;
  __device__ void operator()(int64_t at) const {
    const int64_t i = at / cols;
    const int64_t j = at % cols;
    if (j > i) return;
    const double value = moment[arranged[i] * cols + arranged[j]];
    to[at] = i == j ? value + (added + (value == 0.0 ? dead : 0.0)) : value;
  }
};

struct ArrangeColumns {
  int64_t cols;
  const double* from;
  const int* arranged;
  double* to;
  __device__ void operator()(int64_t at) const {
    const int64_t row = at / cols * cols;
    to[at] = from[row + arranged[at - row]];
  }
};

struct AddArranged {
  int64_t cols;
  const double* from;
  const int* arranged;
  const double* x;
  double* to;
  __device__ void operator()(int64_t at) const {
    const int64_t row = at / cols * cols;
    const int64_t column = row + arranged[at - row];
    to[column] = from[column] + x[at];
  }
};

struct Subtract {
  const double* a;
  const double* b;
  double* to;
  __device__ void operator()(int64_t at) const { to[at] = a[at] - b[at]; }
};

struct TransformFactor {
  int64_t width;
  int64_t size;
  const float* tx;
  const double* factor;
  int64_t ld;
  bool reversed;
  double* to;
  __device__ void operator()(int64_t at) const {
    const int64_t position = at / width;
    const int64_t k = at % width;
    const int64_t column = reversed ? width - 1 - position : position;
    const int64_t first = column / size * size;
    const float* const row = tx + first * size + (column - first) * size;
    double sum = 0.0;
    for (int64_t m = 0; m < size; ++m) {
      const int64_t other = reversed ? width - 1 - (first + m) : first + m;
      if (k <= other) sum = fma(static_cast<double>(row[m]), factor[other * ld + k], sum);
    }
    to[at] = sum;
  }
};

struct NormalizeColumns {
  int64_t width;
  const double* from;
  int64_t from_ld;
  double* to;
  __device__ void operator()(int64_t at) const {
    const int64_t i = at / width;
    const int64_t j = at % width;
    if (j < i) to[at] = from[i * from_ld + j] / from[j * (from_ld + 1)];
  }
};

struct GatherUnit {
  UnitColumns unit;
  const double* from;
  double* to;
  __device__ void operator()(int64_t at) const {
    const int64_t r = at / unit.width;
    const int64_t i = at % unit.width;
    to[r * unit.width + unit.inner[i]] = from[r * unit.cols + unit.begin + i];
  }
};

struct KeepUnit {
  UnitColumns unit;
  UnitResult result;
  __device__ void operator()(int64_t at) const {
    const int64_t r = at / unit.width;
    const int64_t i = at % unit.width;
    const int64_t column = unit.inner[i];
    const int64_t from = r * unit.width + column;
    const int64_t to = r * unit.cols + unit.first + column;
    const double seen = result.seen[from];
    result.decoded_to[to] = result.decoded[from];
    if (result.seen_to != nullptr) result.seen_to[to] = seen;
    result.errors[r * result.errors_ld + i] = result.target[to] - seen;
  }
};

struct PackByte {
  int64_t cols;
  int bits;
  const uint8_t* codes;
  uint8_t* packed;
  __device__ void operator()(int64_t at) const {
    const int64_t row_bytes = cols * bits / 8;
    const uint8_t* const row = codes + at / row_bytes * cols;
    const int64_t bit = at % row_bytes * 8;
    unsigned byte = 0;
    for (int64_t c = bit / bits; c * bits < bit + 8; ++c) {
      const auto shift = static_cast<int>(c * bits - bit);
      byte |= shift < 0 ? unsigned{row[c]} >> -shift : unsigned{row[c]} << shift;
    }
    packed[at] = static_cast<uint8_t>(byte);
  }
};

// --- Splitting the factor ------------------------------------------------------------------------

constexpr int kSplitRows = 64;

// X L = B for kSplitRows rows of B below a unit, a thread a row.
__global__ void __launch_bounds__(kSplitRows)
    SplitFactorKernel(int64_t cols, int width, double* factor) {
  extern __shared__ double shared[];
  const int64_t begin = int64_t{blockIdx.x} * width;
  const int64_t row0 = begin + width + int64_t{blockIdx.y} * kSplitRows;
  if (row0 >= cols) return;
  const int pitch = width + 1;
  double* const lower = shared;
  double* const tile = lower + width * pitch;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < width * width; i += kSplitRows) {
    lower[i / width * pitch + i % width] = factor[(begin + i / width) * cols + begin + i % width];
  }
  const auto rows = static_cast<int>(min(int64_t{kSplitRows}, cols - row0));
  for (int i = thread; i < rows * width; i += kSplitRows) {
    tile[i / width * pitch + i % width] = factor[(row0 + i / width) * cols + begin + i % width];
  }
  __syncthreads();
  if (thread < rows) {
    double* const x = tile + thread * pitch;
    for (int j = width - 1; j >= 0; --j) {
      double value = x[j];
      for (int k = j + 1; k < width; ++k) value = fma(-x[k], lower[k * pitch + j], value);
      x[j] = value / lower[j * pitch + j];
    }
  }
  __syncthreads();
  for (int i = thread; i < rows * width; i += kSplitRows) {
    factor[(row0 + i / width) * cols + begin + i % width] = tile[i / width * pitch + i % width];
  }
}

// --- Scales and rounding of wide units -----------------------------------------------------------

// Four lanes a group.
__global__ void __launch_bounds__(kThreads)
    DividedScalesKernel(FormatSpec format, ScaleDivisor divisor, int64_t groups,
                        const double* values, double* scales) {
  constexpr int kLanes = 4;
  constexpr int kValues = 4;
  const int64_t run = FirstElement();
  double v[kValues] = {};
  for (int i = 0; i < kValues && run < groups * kLanes; ++i) v[i] = values[run * kValues + i];
  const double amax = GroupAmax<kLanes, kValues>(v);
  const bool small = divisor.follows_amax && (amax > divisor.outgrown || amax < divisor.small);
  const double scale =
      GroupScale<kLanes, kValues>(format, v, small ? divisor.small_global : divisor.global);
  if (run < groups * kLanes && run % kLanes == 0) scales[run / kLanes] = scale;
}

constexpr int kChunkRows = 32;
constexpr int kChunkThreads = 128;

struct ChunkTile {
  double values[kChunkRows][kRoundedColumns + 1];  // by position
  double errors[kChunkRows][kRoundedColumns + 1];  // first the feedback from later chunks
  double scales[kChunkRows][kRoundedColumns + 1];
  double factors[kChunkRows][kRoundedColumns + 1];
  double coupling[kRoundedColumns * kRoundedColumns];
  int slots[kRoundedColumns];
  uint8_t codes[kChunkRows][kRoundedColumns + 4];
};

__device__ void LoadChunk(const GptqChunk& p, int64_t row0, int count, ChunkTile& tile) {
  const UnitColumns& unit = p.unit;
  const int64_t groups = (unit.cols + p.format.grid_cols - 1) / p.format.grid_cols;
  for (int i = static_cast<int>(threadIdx.x); i < kChunkRows * kRoundedColumns;
       i += kChunkThreads) {
    const int r = i / kRoundedColumns;
    const int position = i % kRoundedColumns;
    const int64_t row = row0 + r;
    if (row >= unit.rows || position >= count) continue;
    const int64_t column = unit.inner[p.begin + position];
    tile.values[r][position] = p.values[row * unit.width + column];
    tile.errors[r][position] = p.feedback[row * unit.width + p.begin + position];
    const double scale =
        p.scales[row / p.format.grid_rows * groups + (unit.first + column) / p.format.grid_cols];
    tile.scales[r][position] = scale;
    tile.factors[r][position] = RoundingFactor(scale);
  }
  for (int i = static_cast<int>(threadIdx.x); i < kRoundedColumns * kRoundedColumns;
       i += kChunkThreads) {
    const int r = i / kRoundedColumns;
    const int c = i % kRoundedColumns;
    if (c < r && r < count) {
      tile.coupling[i] = p.coupling[(p.begin + r) * unit.width + p.begin + c];
    }
  }
  if (threadIdx.x < kRoundedColumns) tile.slots[threadIdx.x] = static_cast<int>(threadIdx.x);
}

template <ElementKind kKind>
__global__ void __launch_bounds__(kChunkThreads) RoundChunkKernel(GptqChunk p) {
  extern __shared__ double shared[];
  ChunkTile& tile = *reinterpret_cast<ChunkTile*>(shared);
  const UnitColumns& unit = p.unit;
  const int64_t row0 = int64_t{blockIdx.x} * kChunkRows;
  const auto count = static_cast<int>(p.end - p.begin);
  LoadChunk(p, row0, count, tile);
  __syncthreads();
  const auto r = static_cast<int>(threadIdx.x);
  if (r < kChunkRows && row0 + r < unit.rows) {
    double* const errors = tile.errors[r];
    RoundRow<kRoundedColumns, kKind>(
        p.format, count, {tile.slots, tile.slots, tile.coupling, p.negative_zeros},
        {tile.values[r], tile.codes[r], tile.scales[r], tile.factors[r]}, errors,
        [&](int i, double error) { errors[i] = error; });
  }
  __syncthreads();
  for (int i = r; i < kChunkRows * kRoundedColumns; i += kChunkThreads) {
    const int64_t row = row0 + i / kRoundedColumns;
    const int position = i % kRoundedColumns;
    if (row >= unit.rows || position >= count) continue;
    const int64_t column = unit.inner[p.begin + position];
    p.decoded[row * unit.width + column] = tile.values[i / kRoundedColumns][position];
    p.codes[row * unit.cols + unit.first + column] = tile.codes[i / kRoundedColumns][position];
    p.errors[row * p.errors_ld + position] = tile.errors[i / kRoundedColumns][position];
  }
}

template <ElementKind kKind>
cudaError_t LaunchChunk(cudaStream_t stream, const GptqChunk& chunk) {
  constexpr int kBytes = sizeof(ChunkTile);
  const auto kernel = RoundChunkKernel<kKind>;
  const cudaError_t code = cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (code != cudaSuccess) return code;
  const auto blocks = static_cast<unsigned>((chunk.unit.rows + kChunkRows - 1) / kChunkRows);
  kernel<<<blocks, kChunkThreads, kBytes, stream>>>(chunk);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchArrangeMoment(cudaStream_t stream, int64_t cols, const double* moment,
                                const int* arranged, double added, double dead, double* to) {
  return ForEach(stream, cols * cols, ArrangeMoment{cols, moment, arranged, added, dead, to});
}

cudaError_t LaunchSplitFactor(cudaStream_t stream, int64_t cols, int width, double* factor) {
  if (width > kLargestSplit || cols % width != 0) return cudaErrorInvalidValue;
  if (cols <= width) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(cols / width - 1),
                  static_cast<unsigned>((cols - width + kSplitRows - 1) / kSplitRows));
  const auto bytes = static_cast<int>(sizeof(double)) * (width + kSplitRows) * (width + 1);
  const cudaError_t code = cudaFuncSetAttribute(reinterpret_cast<const void*>(SplitFactorKernel),
                                                cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (code != cudaSuccess) return code;
  SplitFactorKernel<<<grid, kSplitRows, bytes, stream>>>(cols, width, factor);
  return cudaGetLastError();
}

cudaError_t LaunchArrangeColumns(cudaStream_t stream, int64_t rows, int64_t cols,
                                 const double* from, const int* arranged, double* to) {
  return ForEach(stream, rows * cols, ArrangeColumns{cols, from, arranged, to});
}

cudaError_t LaunchAddArranged(cudaStream_t stream, int64_t rows, int64_t cols, const double* from,
                              const int* arranged, const double* x, double* to) {
  return ForEach(stream, rows * cols, AddArranged{cols, from, arranged, x, to});
}

cudaError_t LaunchSubtract(cudaStream_t stream, int64_t count, const double* a, const double* b,
                           double* to) {
  return ForEach(stream, count, Subtract{a, b, to});
}

cudaError_t LaunchTransformFactor(cudaStream_t stream, int64_t width, int block_size,
                                  const float* tx, const double* factor, int64_t ld, bool reversed,
                                  double* to) {
  return ForEach(stream, width * width,
                 TransformFactor{width, block_size, tx, factor, ld, reversed, to});
}

cudaError_t LaunchNormalizeColumns(cudaStream_t stream, int64_t width, const double* from,
                                   int64_t from_ld, double* to) {
  return ForEach(stream, width * width, NormalizeColumns{width, from, from_ld, to});
}

cudaError_t LaunchGatherUnit(cudaStream_t stream, const UnitColumns& unit, const double* from,
                             double* to) {
  return ForEach(stream, unit.rows * unit.width, GatherUnit{unit, from, to});
}

cudaError_t LaunchKeepUnit(cudaStream_t stream, const UnitColumns& unit, const UnitResult& result) {
  return ForEach(stream, unit.rows * unit.width, KeepUnit{unit, result});
}

cudaError_t LaunchDividedScales(cudaStream_t stream, const FormatSpec& format,
                                const ScaleDivisor& divisor, int64_t rows, int64_t width,
                                const double* values, double* scales) {
  const int64_t groups = rows * width / 16;
  if (groups == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((groups * 4 + kThreads - 1) / kThreads);
  DividedScalesKernel<<<blocks, kThreads, 0, stream>>>(format, divisor, groups, values, scales);
  return cudaGetLastError();
}

cudaError_t LaunchRoundChunk(cudaStream_t stream, const GptqChunk& chunk) {
  if (chunk.unit.rows == 0) return cudaSuccess;
  switch (chunk.format.rule) {
    case FormatSpec::Rule::kIntegerAmax:
      return LaunchChunk<ElementKind::kInteger>(stream, chunk);
    case FormatSpec::Rule::kIntegerGaussian:
      return LaunchChunk<ElementKind::kGaussianInteger>(stream, chunk);
    case FormatSpec::Rule::kFp8:
      return LaunchChunk<ElementKind::kE4m3>(stream, chunk);
    default:
      return LaunchChunk<ElementKind::kE2m1>(stream, chunk);
  }
}

cudaError_t LaunchPackCodes(cudaStream_t stream, int64_t rows, int64_t cols, int bits,
                            const uint8_t* codes, uint8_t* packed) {
  return ForEach(stream, rows * (cols * bits / 8), PackByte{cols, bits, codes, packed});
}

}  // namespace quantd::compute
