#include <algorithm>

#include "compute/backend/cuda/block_solver.cuh"
#include "compute/backend/cuda/transform_kernels.h"

namespace quantd::compute {
namespace {

constexpr double kMaxDamping = 1.0;
constexpr double kFirstRetry = 1e-12;  // where no damping at all was asked for
constexpr double kFirstJitter = 1e-12;
constexpr double kLastJitter = 1e-2;
constexpr int kLargestGram = 64;

__device__ int Thread() { return static_cast<int>(threadIdx.x); }
__device__ int Threads() { return static_cast<int>(blockDim.x); }

// --- Gram --------------------------------------------------------------------------------------

constexpr int kGramRows = 32;
constexpr int kGramThreads = kSolverSide * kSolverSide;

// Each thread sums kTile x kTile entries, kSolverSide apart.
template <int kTile>
__global__ void __launch_bounds__(kGramThreads)
    GramPartialsKernel(const double* weight, int64_t rows, int64_t ld, int size,
                       int64_t rows_per_slice, double* partial) {
  __shared__ double tile[kGramRows][kTile * kSolverSide];
  const int across = Thread() % kSolverSide;
  const int down = Thread() / kSolverSide;
  const double* const columns = weight + int64_t{blockIdx.x} * size;
  const int64_t first = int64_t{blockIdx.y} * rows_per_slice;
  const int64_t last = min(first + rows_per_slice, rows);
  double sums[kTile][kTile] = {};
  for (int64_t row = first; row < last; row += kGramRows) {
    for (int i = Thread(); i < kGramRows * kTile * kSolverSide; i += kGramThreads) {
      const int r = i / (kTile * kSolverSide);
      const int c = i % (kTile * kSolverSide);
      tile[r][c] = c < size && row + r < last ? columns[(row + r) * ld + c] : 0.0;
    }
    __syncthreads();
#pragma unroll 4
    for (int r = 0; r < kGramRows; ++r) {
      double a[kTile];
      double b[kTile];
#pragma unroll
      for (int t = 0; t < kTile; ++t) {
        a[t] = tile[r][down + t * kSolverSide];
        b[t] = tile[r][across + t * kSolverSide];
      }
#pragma unroll
      for (int t = 0; t < kTile; ++t) {
#pragma unroll
        for (int u = 0; u <= t; ++u) sums[t][u] = fma(a[t], b[u], sums[t][u]);
      }
    }
    __syncthreads();
  }
  double* const to = partial + (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * size * size;
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
#pragma unroll
    for (int u = 0; u <= t; ++u) {
      const int i = down + t * kSolverSide;
      const int j = across + u * kSolverSide;
      if (i < size && j <= i) to[i * size + j] = sums[t][u];
    }
  }
}

// --- Solving one block -------------------------------------------------------------------------

// Matrices and lines of one thread block.
struct Workspace {
  int row_stride;
  int column_stride;
  double* norms;
  double* values;
  double* scales;
  double* line;  // 3n
  double* warps;
  Rotation* rotations;
  int* order;
  int* pivots;
  double* lw;
  double* lx;
  double* t;
  double* g;  // columns contiguous, like v
  double* v;
};

__host__ __device__ constexpr int LineDoubles(int n) { return 9 * n + 36; }
__host__ __device__ constexpr int64_t MatrixDoubles(int n) {
  return int64_t{3} * n * RowStride(n) + int64_t{2} * n * ColumnStride(n);
}

__device__ Workspace Divide(int n, double* lines, double* matrices) {
  Workspace w;
  w.row_stride = RowStride(n);
  w.column_stride = ColumnStride(n);
  w.rotations = reinterpret_cast<Rotation*>(lines);
  w.norms = lines + 2 * n + 4;
  w.values = w.norms + n;
  w.scales = w.values + n;
  w.line = w.scales + n;
  w.warps = w.line + 3 * n;
  w.order = reinterpret_cast<int*>(w.warps + 32);
  w.pivots = w.order + n;
  w.lw = matrices;
  w.lx = w.lw + n * w.row_stride;
  w.t = w.lx + n * w.row_stride;
  w.g = w.t + n * w.row_stride;
  w.v = w.g + n * w.column_stride;
  return w;
}

// Mw, whole, n x n without gaps.
__device__ void LoadGram(const BlockProblem& p, int64_t block, int64_t blocks, double* to) {
  const int n = p.size;
  const double* const from = p.gram + (p.reversed ? blocks - 1 - block : block) * n * n;
  for (int i = Thread(); i < n * n; i += Threads()) {
    const int r = i / n;
    const int c = i % n;
    if (c > r) continue;
    const double* const entry = from + (p.reversed ? (n - 1 - c) * n + n - 1 - r : i);
    double sum = 0.0;
#pragma unroll 32
    for (int64_t part = 0; part < p.parts; ++part) sum += entry[part * p.part_stride];
    to[r * n + c] = to[c * n + r] = sum / p.rows;
  }
  __syncthreads();
}

// Lower triangle of `from` with (damping * mean diagonal + floor) I added.
__device__ void LoadDamped(int n, const double* from, int64_t ld, double damping, double floor,
                           double* to, int to_ld) {
  double trace = 0.0;
  for (int i = 0; i < n; ++i) trace += from[i * (ld + 1)];
  const double added = damping * (trace / n) + floor;
  for (int i = Thread(); i < n * n; i += Threads()) {
    const int r = i / n;
    const int c = i % n;
    if (c <= r) to[r * to_ld + c] = from[r * ld + c] + (r == c ? added : 0.0);
  }
}

// Lw and Lx. The damping used, or a negative number where none helps.
__device__ double FactorMarginal(const BlockProblem& p, int64_t block, const Workspace& w) {
  const int n = p.size;
  const double* const mx = p.moment + block * p.moment_stride;
  for (double damping = p.damping;;
       damping = fmin(fmax(10.0 * damping, kFirstRetry), kMaxDamping)) {
    LoadDamped(n, w.g, n, damping, p.weight_floor, w.lw, w.row_stride);
    LoadDamped(n, mx, p.moment_ld, damping, p.moment_floor, w.lx, w.row_stride);
    __syncthreads();
    const bool factored = FactorCholesky(HalfBlock(), n, InFirstHalf() ? w.lw : w.lx, w.row_stride,
                                         InFirstHalf() ? w.line : w.norms);
    if (__syncthreads_and(factored) != 0) return damping;
    if (damping >= kMaxDamping) return -1.0;
  }
}

// G = Lx^T Lw with V = I, or both times the vectors to start from.
__device__ void BalanceFactors(const BlockProblem& p, int64_t block, const Workspace& w) {
  const int n = p.size;
  const int rows = w.row_stride;
  const int columns = w.column_stride;
  const double* const start = p.start == nullptr ? nullptr : p.start + block * n * n;
  for (int i = Thread(); i < n * n; i += Threads()) {
    const int column = i / n;
    const int row = i % n;
    w.v[column * columns + row] = start == nullptr ? (row == column ? 1.0 : 0.0) : start[i];
  }
  __syncthreads();
  const double* right = w.lw;
  if (start != nullptr) {
    for (int i = Thread(); i < n * n; i += Threads()) {
      const int column = i / n;
      const int row = i % n;
      double sum = 0.0;
      for (int k = 0; k <= row; ++k) {
        sum = fma(w.lw[row * rows + k], w.v[column * columns + k], sum);
      }
      w.t[row * rows + column] = sum;
    }
    right = w.t;
    __syncthreads();
  }
  for (int i = Thread(); i < n * n; i += Threads()) {
    const int column = i / n;
    const int row = i % n;
    double sum = 0.0;
    for (int k = start == nullptr ? max(row, column) : row; k < n; ++k) {
      sum = fma(w.lx[k * rows + row], right[k * rows + column], sum);
    }
    w.g[column * columns + row] = sum;
  }
  __syncthreads();
}

// The lower factor of the block's moment in the order of its columns.
__device__ bool LoadConditionalFactor(const BlockProblem& p, int64_t block, int64_t blocks,
                                      const Workspace& w) {
  const int n = p.size;
  const double* const from = p.moment + (p.reversed ? blocks - 1 - block : block) * p.moment_stride;
  for (int i = Thread(); i < n * n; i += Threads()) {
    const int r = i / n;
    const int c = i % n;
    if (c > r) continue;
    double value = 0.0;
    if (p.reversed) {
      const double* const a = from + (n - 1 - r) * p.moment_ld;
      const double* const b = from + (n - 1 - c) * p.moment_ld;
      for (int k = 0; k <= n - 1 - r; ++k) value = fma(a[k], b[k], value);
    } else {
      value = from[r * p.moment_ld + c];
    }
    w.lx[r * w.row_stride + c] = value;
  }
  __syncthreads();
  return !p.reversed || FactorCholesky(WholeBlock(), n, w.lx, w.row_stride, w.line);
}

// t = Mw L, lw = L^T Mw L: mean products of y's rows.
__device__ void ProjectGram(int n, const Workspace& w) {
  for (int i = Thread(); i < n * n; i += Threads()) {
    const int r = i / n;
    const int c = i % n;
    double sum = 0.0;
    for (int k = c; k < n; ++k) sum = fma(w.g[r * n + k], w.lx[k * w.row_stride + c], sum);
    w.t[r * w.row_stride + c] = sum;
  }
  __syncthreads();
  for (int i = Thread(); i < n * n; i += Threads()) {
    const int r = i / n;
    const int c = i % n;
    double sum = 0.0;
    for (int k = r; k < n; ++k) {
      sum = fma(w.lx[k * w.row_stride + r], w.t[k * w.row_stride + c], sum);
    }
    w.lw[r * w.row_stride + c] = sum;
  }
  __syncthreads();
}

__device__ double Trace(int n, const double* a, int ld) {
  double trace = 0.0;
  for (int i = 0; i < n; ++i) trace += a[i * (ld + 1)];
  return trace;
}

// G with G^T G = y y^T / R and V = I. False where that is singular: then G is y y^T / R itself.
__device__ bool FactorProjected(int n, const Workspace& w) {
  const int rows = w.row_stride;
  const bool definite = FactorCholesky(WholeBlock(), n, w.lw, rows, w.line);
  if (!definite) ProjectGram(n, w);
  for (int i = Thread(); i < n * n; i += Threads()) {
    const int column = i / n;
    const int row = i % n;
    const double value = definite ? (row <= column ? w.lw[column * rows + row] : 0.0)
                                  : w.lw[max(row, column) * rows + min(row, column)];
    w.g[column * w.column_stride + row] = value;
    w.v[column * w.column_stride + row] = row == column ? 1.0 : 0.0;
  }
  __syncthreads();
  return definite;
}

// Singular values, largest first, and the columns of g and v that they belong to.
template <int kLanes, int kEntries>
__device__ void DecomposeSingular(int n, const Workspace& w, bool vectors) {
  const double power = LargestPower(n, n, w.g, w.column_stride, w.warps);
  for (int i = Thread(); i < n * n; i += Threads()) {
    w.g[i / n * w.column_stride + i % n] *= 1.0 / power;
  }
  __syncthreads();
  double* const along = vectors ? w.v : nullptr;
  if (n == kLanes * kEntries) {
    OrthogonalizeColumns<kLanes, kEntries, true>(n, w.g, along, w.column_stride, w.norms,
                                                 w.rotations);
  } else {
    OrthogonalizeColumns<kLanes, kEntries, false>(n, w.g, along, w.column_stride, w.norms,
                                                  w.rotations);
  }
  for (int i = Thread(); i < n; i += Threads()) {
    w.order[i] = i;
    w.values[i] = 0.0;
  }
  __syncthreads();
  for (int i = Thread(); i < n; i += Threads()) {
    const double norm = w.norms[i];
    int rank = 0;
    for (int k = 0; k < n; ++k) {
      rank += w.norms[k] > norm || (w.norms[k] == norm && k < i) ? 1 : 0;
    }
    w.order[rank] = i;
    w.values[rank] = sqrt(norm) * power;
  }
  __syncthreads();
}

// 1 or -1: what makes the largest entry of a vector (the first of equal ones) positive.
__device__ double SignOf(int n, const double* vector) {
  double largest = -1.0;
  double sign = 1.0;
  for (int i = 0; i < n; ++i) {
    const double magnitude = fabs(vector[i]);
    if (magnitude > largest) {
      largest = magnitude;
      sign = vector[i] < 0.0 ? -1.0 : 1.0;
    }
  }
  return sign;
}

// t = diag(scales) V^T Lw^T.
__device__ void FormMarginal(int n, const Workspace& w) {
  for (int i = Thread(); i < n; i += Threads()) {
    w.scales[i] = SignOf(n, w.v + w.order[i] * w.column_stride) * (1.0 / sqrt(w.values[i]));
  }
  __syncthreads();
  for (int i = Thread(); i < n * n; i += Threads()) {
    const int r = i / n;
    const int c = i % n;
    const double* const vector = w.v + w.order[r] * w.column_stride;
    double sum = 0.0;
    for (int k = 0; k <= c; ++k) sum = fma(vector[k], w.lw[c * w.row_stride + k], sum);
    w.t[r * w.row_stride + c] = w.scales[r] * sum;
  }
  __syncthreads();
}

// t = diag(sqrt(s)) V^T L^-1, s the floored spectrum.
__device__ void FormConditional(int n, double mean, double floor, const Workspace& w) {
  for (int c = Thread(); c < n; c += Threads()) {
    const double* const vector = w.v + w.order[c] * w.column_stride;
    const double s = fmax(w.values[c] + 0.01 * mean, floor);
    w.scales[c] = SignOf(n, vector) * sqrt(s);
    for (int i = n - 1; i >= 0; --i) {
      double value = vector[i];
      for (int k = i + 1; k < n; ++k) {
        value -= w.lx[k * w.row_stride + i] * w.lw[k * w.row_stride + c];
      }
      w.lw[i * w.row_stride + c] = value / w.lx[i * w.row_stride + i];
    }
  }
  __syncthreads();
  for (int i = Thread(); i < n * n; i += Threads()) {
    const int r = i / n;
    const int c = i % n;
    w.t[r * w.row_stride + c] = w.scales[r] * w.lw[c * w.row_stride + r];
  }
  __syncthreads();
}

// t := H t, H Sylvester's Hadamard matrix / sqrt(n).
__device__ void ApplyHadamard(int n, double* t, int ld) {
  for (int step = 1; step < n; step *= 2) {
    for (int i = Thread(); i < n * n / 2; i += Threads()) {
      const int pair = i / n;
      const int column = i % n;
      const int row = pair / step * 2 * step + pair % step;
      const double a = t[row * ld + column];
      const double b = t[(row + step) * ld + column];
      t[row * ld + column] = a + b;
      t[(row + step) * ld + column] = a - b;
    }
    __syncthreads();
  }
  const double magnitude = 1.0 / sqrt(static_cast<double>(n));
  for (int i = Thread(); i < n * n; i += Threads()) t[i / n * ld + i % n] *= magnitude;
  __syncthreads();
}

// Tw from t, which holds the rounded Tx and is destroyed. Whether this thread's part is finite.
__device__ bool StoreInverseTransposed(const Team& team, int n, const Workspace& w, double* tw) {
  if (!InvertInPlace(team, n, w.t, w.row_stride, w.line, w.pivots)) return false;
  bool finite = true;
  for (int i = team.rank; i < n * n; i += team.size) {
    const int k = i / n;
    const int j = i % n;
    const double value = w.t[w.pivots[k] * w.row_stride + j];
    finite &= fabs(value) < INFINITY;
    tw[w.pivots[j] * n + k] = value;
  }
  return finite;
}

// Rounds t to float32 there and in tx. False where it is not finite.
__device__ bool RoundTransform(int n, const Workspace& w, float* tx) {
  bool finite = true;
  for (int i = Thread(); i < n * n; i += Threads()) {
    double& value = w.t[i / n * w.row_stride + i % n];
    const auto rounded = static_cast<float>(value);
    finite &= fabsf(rounded) < INFINITY;
    tx[i] = rounded;
    value = rounded;
  }
  return __syncthreads_and(finite) != 0;
}

// --- Coupling ----------------------------------------------------------------------------------

// half = T L, rows in the order of positions. Columns beyond the diagonal of L are zeros.
__device__ void TransformFactor(const Team& team, int n, int size, const float* tx,
                                const double* factor, int64_t ld, bool reversed, double* lower,
                                double* half, int stride) {
  for (int i = team.rank; i < n * n; i += team.size) {
    const int r = i / n;
    const int c = i % n;
    lower[r * stride + c] = c <= r ? factor[r * ld + c] : 0.0;
  }
  team.Sync();
  for (int i = team.rank; i < n * n; i += team.size) {
    const int position = i / n;
    const int c = i % n;
    const int column = reversed ? n - 1 - position : position;
    const float* const row = tx + column / size * size * size + column % size * size;
    double sum = 0.0;
    for (int m = 0; m < size; ++m) {
      const int other = column / size * size + m;
      sum = fma(static_cast<double>(row[m]), lower[(reversed ? n - 1 - other : other) * stride + c],
                sum);
    }
    half[position * stride + c] = sum;
  }
  team.Sync();
}

// Room for three matrices of n rows of RowStride(n).
struct CouplingSpace {
  double* lower;
  double* half;
  double* moment;
  double* lines;  // 2n
};
// `size` 0: T = I.
__device__ bool CoupleUnit(const Team& team, int n, int size, const float* tx, const double* factor,
                           int64_t ld, bool reversed, const CouplingSpace& space,
                           double* coupling) {
  const int stride = RowStride(n);
  double* const lower = space.lower;
  double* const half = space.half;
  double* const moment = space.moment;
  if (size == 0) {
    for (int i = team.rank; i < n * n; i += team.size) {
      const int r = i / n;
      const int c = i % n;
      coupling[i] = c <= r ? factor[r * ld + c] / factor[c * (ld + 1)] : 0.0;
    }
    return true;
  }
  TransformFactor(team, n, size, tx, factor, ld, reversed, lower, half, stride);
  for (int i = team.rank; i < n * n; i += team.size) {
    const int r = i / n;
    const int c = i % n;
    if (c > r) continue;
    double sum = 0.0;
    for (int k = 0; k < n; ++k) sum = fma(half[r * stride + k], half[c * stride + k], sum);
    moment[r * stride + c] = sum;
  }
  team.Sync();
  const double mean = Trace(n, moment, stride) / n;
  bool coupled = false;
  // Positive definite but for rounding.
  for (double jitter = 0.0; jitter <= kLastJitter && !coupled;
       jitter = fmax(10.0 * jitter, kFirstJitter)) {
    for (int i = team.rank; i < n * n; i += team.size) {
      const int r = i / n;
      const int c = i % n;
      lower[r * stride + c] =
          (c <= r ? moment[r * stride + c] : 0.0) + (c == r ? jitter * mean : 0.0);
    }
    team.Sync();
    coupled = FactorCholesky(team, n, lower, stride, space.lines);
  }
  for (int i = team.rank; i < n * n; i += team.size) {
    const int r = i / n;
    const int c = i % n;
    coupling[i] = c <= r ? lower[r * stride + c] / lower[c * (stride + 1)] : 0.0;
  }
  return coupled;
}

// --- Kernels -----------------------------------------------------------------------------------

// G and V, and how the values found become S: sets trace and damping.
__device__ bool PrepareBlock(const BlockProblem& p, int64_t block, int64_t blocks,
                             const Workspace& w, double& damping, bool& squared) {
  LoadGram(p, block, blocks, w.g);
  if (!p.conditional) {
    damping = FactorMarginal(p, block, w);
    if (damping < 0.0) return false;
    BalanceFactors(p, block, w);
    return true;
  }
  if (!LoadConditionalFactor(p, block, blocks, w)) return false;
  ProjectGram(p.size, w);
  if (p.energies != nullptr) return true;
  squared = !FactorProjected(p.size, w);
  return true;
}

template <int kLanes, int kEntries>
__device__ BlockState SolveBlock(const BlockProblem& p, int64_t block, int64_t blocks,
                                 const Workspace& w, BlockOutcome& outcome) {
  const int n = p.size;
  bool squared = false;
  outcome.damping = 0.0;
  outcome.trace = 0.0;
  if (!PrepareBlock(p, block, blocks, w, outcome.damping, squared)) {
    return BlockState::kNotPositive;
  }
  if (p.energies != nullptr) {
    if (Thread() == 0) p.energies[block] = Trace(n, w.lw, w.row_stride) / n;
    return BlockState::kSolved;
  }
  DecomposeSingular<kLanes, kEntries>(n, w, true);
  if (squared) {
    for (int i = Thread(); i < n; i += Threads()) w.values[i] = sqrt(w.values[i]);
    __syncthreads();
  }
  for (int i = 0; i < n; ++i) outcome.trace += w.values[i];
  if (p.vectors != nullptr) {
    for (int i = Thread(); i < n * n; i += Threads()) {
      p.vectors[block * n * n + i] = w.v[w.order[i / n] * w.column_stride + i % n];
    }
  }
  if (p.conditional) {
    FormConditional(n, outcome.trace / n, p.spectrum_floor, w);
  } else {
    FormMarginal(n, w);
  }
  if (p.hadamard) ApplyHadamard(n, w.t, w.row_stride);
  float* const tx = p.tx + block * n * n;
  if (!RoundTransform(n, w, tx)) return BlockState::kBeyondFloat32;
  double* const tw = p.tw + block * n * n;
  if (p.coupling == nullptr) {
    return __syncthreads_and(StoreInverseTransposed(WholeBlock(), n, w, tw)) != 0
               ? BlockState::kSolved
               : BlockState::kBeyondFloat32;
  }
  // The inverse and the coupling do not wait for each other.
  const bool inverts = InFirstHalf();
  const bool done = inverts ? StoreInverseTransposed(HalfBlock(), n, w, tw)
                            : CoupleUnit(HalfBlock(), n, n, tx, p.unit_factor, p.unit_factor_ld,
                                         p.reversed, {w.lw, w.lx, w.g, w.norms}, p.coupling);
  if (__syncthreads_and(done || !inverts) == 0) return BlockState::kBeyondFloat32;
  return __syncthreads_and(done || inverts) != 0 ? BlockState::kSolved : BlockState::kNotCoupled;
}

template <int kLanes, int kEntries, int kThreads, bool kShared>
__global__ void __launch_bounds__(kThreads) SolveBlocksKernel(BlockProblem p) {
  extern __shared__ double shared[];
  const Workspace w =
      Divide(p.size, shared,
             kShared ? shared + LineDoubles(p.size)
                     : p.scratch + static_cast<int64_t>(blockIdx.x) * MatrixDoubles(p.size));
  BlockOutcome outcome;
  const BlockState state = SolveBlock<kLanes, kEntries>(p, blockIdx.x, gridDim.x, w, outcome);
  if (Thread() == 0 && p.outcomes != nullptr) {
    BlockOutcome& to = p.outcomes[blockIdx.x];
    to.trace = outcome.trace;
    to.damping = outcome.damping;
    to.state = state;
  }
}

// What is asked of given transforms.
struct GivenTransforms {
  int size;
  const float* tx;
  double* tw;  // null: condition numbers are asked for
  double* scratch;
  BlockOutcome* outcomes;
};

template <int kLanes, int kEntries, int kThreads, bool kShared>
__global__ void __launch_bounds__(kThreads) GivenTransformsKernel(GivenTransforms p) {
  extern __shared__ double shared[];
  const int n = p.size;
  const int64_t block = blockIdx.x;
  const Workspace w =
      Divide(n, shared, kShared ? shared + LineDoubles(n) : p.scratch + block * MatrixDoubles(n));
  const float* const from = p.tx + block * n * n;
  for (int i = Thread(); i < n * n; i += Threads()) {
    w.t[i / n * w.row_stride + i % n] = from[i];
    w.g[i / n * w.column_stride + i % n] = from[i];
  }
  __syncthreads();
  BlockOutcome& outcome = p.outcomes[block];
  if (p.tw != nullptr) {
    const bool finite =
        __syncthreads_and(StoreInverseTransposed(WholeBlock(), n, w, p.tw + block * n * n)) != 0;
    if (Thread() != 0) return;
    outcome.trace = 0.0;
    outcome.damping = 0.0;
    outcome.state = finite ? BlockState::kSolved : BlockState::kBeyondFloat32;
    return;
  }
  DecomposeSingular<kLanes, kEntries>(n, w, false);
  if (Thread() == 0) outcome.condition = w.values[0] / w.values[n - 1];
}

__global__ void __launch_bounds__(256) CoupleUnitsKernel(UnitProblem p) {
  extern __shared__ double shared[];
  const int64_t unit = blockIdx.x;
  const int64_t begin = p.begins[unit];
  const int64_t first = p.firsts[unit];
  double* const second = shared + p.width * RowStride(p.width);
  const bool coupled = CoupleUnit(WholeBlock(), p.width, p.size, p.tx + first * p.size,
                                  p.factor + begin * (p.ld + 1), p.ld, p.reversed,
                                  {shared, second, second + p.width * RowStride(p.width),
                                   second + 2 * p.width * RowStride(p.width)},
                                  p.coupling + unit * p.width * p.width);
  if (Thread() == 0) {
    p.states[unit] = coupled ? BlockState::kSolved : BlockState::kNotCoupled;
  }
}

// --- Launching ---------------------------------------------------------------------------------

bool FitsShared(int64_t doubles) {
  int device = 0;
  int most = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         doubles * static_cast<int64_t>(sizeof(double)) <= most;
}

template <typename Problem>
cudaError_t LaunchWith(cudaStream_t stream, void (*kernel)(Problem), const Problem& problem,
                       int64_t blocks, int threads, int64_t doubles) {
  const auto bytes = static_cast<size_t>(doubles) * sizeof(double);
  const cudaError_t code =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (code != cudaSuccess) return code;
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(problem);
  return cudaGetLastError();
}

}  // namespace

GramSlices SliceGram(int64_t rows, int64_t blocks) {
  constexpr int64_t kThreadBlocks = 512;
  constexpr int64_t kLeastRows = 128;
  const int64_t wanted = std::max<int64_t>((kThreadBlocks + blocks - 1) / blocks, 1);
  int64_t each = std::max((rows + wanted - 1) / wanted, kLeastRows);
  each = (each + kGramRows - 1) / kGramRows * kGramRows;
  return {.slices = std::max<int64_t>((rows + each - 1) / each, 1), .rows_per_slice = each};
}

cudaError_t LaunchGramPartials(cudaStream_t stream, const double* weight, int64_t rows, int64_t ld,
                               int size, int64_t blocks, const GramSlices& slices,
                               double* partial) {
  if (size > kLargestGram) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(slices.slices));
  const auto launch = [&](auto kernel) {
    kernel<<<grid, kGramThreads, 0, stream>>>(weight, rows, ld, size, slices.rows_per_slice,
                                              partial);
    return cudaGetLastError();
  };
  if (size <= kSolverSide) return launch(GramPartialsKernel<1>);
  if (size <= 2 * kSolverSide) return launch(GramPartialsKernel<2>);
  return launch(GramPartialsKernel<4>);
}

int64_t SolverScratch(int size) {
  return size <= 64 && FitsShared(LineDoubles(size) + MatrixDoubles(size)) ? 0
                                                                           : MatrixDoubles(size);
}

cudaError_t LaunchSolveBlocks(cudaStream_t stream, const BlockProblem& problem, int64_t blocks) {
  if (blocks == 0) return cudaSuccess;
  const int n = problem.size;
  const int64_t lines = LineDoubles(n);
  const int64_t all = lines + MatrixDoubles(n);
  const auto launch = [&](auto kernel, int threads, int64_t doubles) {
    return LaunchWith<BlockProblem>(stream, kernel, problem, blocks, threads, doubles);
  };
  if (n <= 16) return launch(SolveBlocksKernel<8, 2, 128, true>, 128, all);
  if (n <= 32) return launch(SolveBlocksKernel<8, 4, 256, true>, 256, all);
  if (n <= 64 && problem.scratch == nullptr) {
    return launch(SolveBlocksKernel<8, 8, 512, true>, 512, all);
  }
  if (n <= kLargestTransform) return launch(SolveBlocksKernel<32, 8, 1024, false>, 1024, lines);
  return cudaErrorInvalidValue;
}

namespace {

cudaError_t LaunchGiven(cudaStream_t stream, const GivenTransforms& problem, int64_t blocks) {
  if (blocks == 0) return cudaSuccess;
  const int n = problem.size;
  const int64_t lines = LineDoubles(n);
  const int64_t all = lines + MatrixDoubles(n);
  const auto launch = [&](auto kernel, int threads, int64_t doubles) {
    return LaunchWith<GivenTransforms>(stream, kernel, problem, blocks, threads, doubles);
  };
  if (n <= 32) return launch(GivenTransformsKernel<8, 4, 256, true>, 256, all);
  if (n <= 64 && problem.scratch == nullptr) {
    return launch(GivenTransformsKernel<8, 8, 512, true>, 512, all);
  }
  if (n <= kLargestTransform) return launch(GivenTransformsKernel<32, 8, 1024, false>, 1024, lines);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchInvertTransforms(cudaStream_t stream, int size, int64_t blocks, const float* tx,
                                   double* tw, double* scratch, BlockOutcome* outcomes) {
  return LaunchGiven(stream, {size, tx, tw, scratch, outcomes}, blocks);
}

cudaError_t LaunchConditions(cudaStream_t stream, int size, int64_t blocks, const float* tx,
                             double* scratch, BlockOutcome* outcomes) {
  return LaunchGiven(stream, {size, tx, nullptr, scratch, outcomes}, blocks);
}

cudaError_t LaunchCoupleUnits(cudaStream_t stream, const UnitProblem& problem, int64_t units) {
  if (units == 0) return cudaSuccess;
  if (problem.width > kLargestCoupled) return cudaErrorInvalidValue;
  const int64_t doubles = int64_t{3} * problem.width * RowStride(problem.width) + 2 * problem.width;
  return LaunchWith<UnitProblem>(stream, CoupleUnitsKernel, problem, units, 256, doubles);
}

}  // namespace quantd::compute
