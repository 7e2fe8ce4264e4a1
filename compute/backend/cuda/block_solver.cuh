#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

// Solvers of one small matrix by a thread block or half of one. Every thread of the team calls each
// function; matrices are complete and visible to all of them when one is entered and when it
// returns. They lie in shared memory or, where they do not fit, in global memory.
namespace quantd::compute {

// Threads of a block are seen as a square of this side where a matrix is updated.
constexpr int kSolverSide = 16;
constexpr int kWarp = 32;

// Where a matrix of n columns has its next row, so that a warp reading down a column meets no bank
// twice.
constexpr int RowStride(int n) { return n + 1; }
// Where the columns that Jacobi rotates begin: 8 lanes read each of two neighbouring columns.
constexpr int ColumnStride(int n) { return (n + 15) / 16 * 16 + 8; }

// Consecutive threads of a block, whole warps, that wait for each other alone.
struct Team {
  int rank;  // of the calling thread
  int size;
  int barrier;  // its hardware barrier, 0 is the whole block's
  __device__ void Sync() const {
    asm volatile("bar.sync %0, %1;" : : "r"(barrier), "r"(size) : "memory");
  }
};
__device__ inline Team WholeBlock() {
  return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x), 0};
}
// The first half of a block's threads or the second.
__device__ inline Team HalfBlock() {
  const int size = static_cast<int>(blockDim.x) / 2;
  const int half = static_cast<int>(threadIdx.x) / size;
  return {static_cast<int>(threadIdx.x) - half * size, size, 1 + half};
}
__device__ inline bool InFirstHalf() { return threadIdx.x < blockDim.x / 2; }

// Largest matrices that a team holds in registers: threads in rows of kSolverSide, each with
// kDown x kAcross entries that far apart.
constexpr int kLargestHeld = 64;

// See FactorCholesky. A step needs one barrier: a column is published while the other line is read.
template <int kDown, int kAcross>
__device__ inline bool FactorHeld(const Team& team, int n, double* a, int ld, double* lines) {
  const int down = team.rank / kSolverSide;
  const int across = team.rank % kSolverSide;
  const int height = team.size / kSolverSide;
  double own[kDown][kAcross];
  double pivots[kAcross] = {};
#pragma unroll
  for (int t = 0; t < kDown; ++t) {
#pragma unroll
    for (int u = 0; u < kAcross; ++u) {
      const int i = down + t * height;
      const int j = across + u * kSolverSide;
      own[t][u] = i < n && j <= i ? a[i * ld + j] : 0.0;
    }
  }
  for (int k = 0; k < n; ++k) {
    double* const column = lines + k % 2 * n;
#pragma unroll
    for (int t = 0; t < kDown; ++t) {
#pragma unroll
      for (int u = 0; u < kAcross; ++u) {
        const int i = down + t * height;
        if (across + u * kSolverSide == k && i < n) column[i] = own[t][u];
      }
    }
    team.Sync();
    const double pivot = column[k];
    if (!(pivot > 0.0 && pivot < INFINITY)) {
      team.Sync();
      return false;
    }
    const double inverse = 1.0 / pivot;
    double right[kAcross];
#pragma unroll
    for (int u = 0; u < kAcross; ++u) {
      const int j = across + u * kSolverSide;
      if (j == k) pivots[u] = pivot;
      right[u] = j > k && j < n ? column[j] : 0.0;
    }
#pragma unroll
    for (int t = 0; t < kDown; ++t) {
      const int i = down + t * height;
      const double left = i > k && i < n ? column[i] * inverse : 0.0;
#pragma unroll
      for (int u = 0; u < kAcross; ++u) own[t][u] = fma(-left, right[u], own[t][u]);
    }
  }
#pragma unroll
  for (int t = 0; t < kDown; ++t) {
#pragma unroll
    for (int u = 0; u < kAcross; ++u) {
      const int i = down + t * height;
      const int j = across + u * kSolverSide;
      if (i >= n || j > i) continue;
      a[i * ld + j] = i == j ? sqrt(pivots[u]) : own[t][u] * rsqrt(pivots[u]);
    }
  }
  team.Sync();
  return true;
}

// See InvertInPlace. `lines`: two columns and a row. The pivot is the largest to 16 bits.
template <int kDown, int kAcross>
__device__ inline bool InvertHeld(const Team& team, int n, double* a, int ld, double* lines,
                                  int* pivots) {
  constexpr unsigned kRowBits = kLargestHeld - 1;
  const int down = team.rank / kSolverSide;
  const int across = team.rank % kSolverSide;
  const int height = team.size / kSolverSide;
  const int lane = team.rank % kWarp;
  double own[kDown][kAcross];
#pragma unroll
  for (int t = 0; t < kDown; ++t) {
#pragma unroll
    for (int u = 0; u < kAcross; ++u) {
      const int i = down + t * height;
      const int j = across + u * kSolverSide;
      own[t][u] = i < n && j < n ? a[i * ld + j] : 0.0;
    }
  }
  double* const row = lines + 2 * n;
  unsigned used = 0;  // bit i / 32 of lane i % 32, in every warp: row i has been a pivot
  for (int k = 0; k < n; ++k) {
    double* const column = lines + k % 2 * n;
#pragma unroll
    for (int t = 0; t < kDown; ++t) {
#pragma unroll
      for (int u = 0; u < kAcross; ++u) {
        const int i = down + t * height;
        if (across + u * kSolverSide == k && i < n) column[i] = own[t][u];
      }
    }
    team.Sync();
    unsigned key = 0;
    for (int i = lane; i < n; i += kWarp) {
      if ((used >> i / kWarp & 1) != 0) continue;
      const auto magnitude = static_cast<unsigned>(__double2hiint(fabs(column[i])));
      key = max(key, (magnitude & ~kRowBits) | (kRowBits - static_cast<unsigned>(i)));
    }
    key = __reduce_max_sync(~0u, key);
    constexpr unsigned kInfinite = 0x7ff00000;
    if (key <= kRowBits || key >= kInfinite) {
      team.Sync();
      return false;
    }
    const auto pivot = static_cast<int>(kRowBits - (key & kRowBits));
    if (pivot % kWarp == lane) used |= 1u << pivot / kWarp;
    if (team.rank == 0) pivots[k] = pivot;
#pragma unroll
    for (int t = 0; t < kDown; ++t) {
#pragma unroll
      for (int u = 0; u < kAcross; ++u) {
        const int j = across + u * kSolverSide;
        if (down + t * height == pivot && j < n) row[j] = own[t][u];
      }
    }
    team.Sync();
    const double inverse = 1.0 / row[k];
#pragma unroll
    for (int t = 0; t < kDown; ++t) {
      const int i = down + t * height;
      const double factor = i < n ? column[i] * inverse : 0.0;
#pragma unroll
      for (int u = 0; u < kAcross; ++u) {
        const int j = across + u * kSolverSide;
        if (i == pivot) {
          own[t][u] = j == k ? inverse : own[t][u] * inverse;
        } else {
          own[t][u] = j == k ? -factor : fma(-factor, j < n ? row[j] : 0.0, own[t][u]);
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kDown; ++t) {
#pragma unroll
    for (int u = 0; u < kAcross; ++u) {
      const int i = down + t * height;
      const int j = across + u * kSolverSide;
      if (i < n && j < n) a[i * ld + j] = own[t][u];
    }
  }
  team.Sync();
  return true;
}

// Lower triangle of a symmetric matrix to its Cholesky factor, in place; what is above the diagonal
// is left alone. False for all threads where a pivot is not positive and finite. `lines`: 2n
// doubles in shared memory. Teams have at least 4 n threads up to kLargestHeld.
__device__ inline bool FactorCholesky(const Team& team, int n, double* a, int ld, double* lines) {
  if (n <= kSolverSide) return FactorHeld<4, 1>(team, n, a, ld, lines);
  if (n <= 2 * kSolverSide) return FactorHeld<4, 2>(team, n, a, ld, lines);
  if (n <= kLargestHeld) return FactorHeld<4, 4>(team, n, a, ld, lines);
  const int down = team.rank / kSolverSide;
  const int across = team.rank % kSolverSide;
  const int height = team.size / kSolverSide;
  // Columns stay unscaled on the way, which saves a barrier a step.
  for (int k = 0; k < n; ++k) {
    const double pivot = a[k * ld + k];
    if (!(pivot > 0.0 && pivot < INFINITY)) {
      team.Sync();
      return false;
    }
    const double inverse = 1.0 / pivot;
    for (int i = k + 1 + down; i < n; i += height) {
      const double factor = a[i * ld + k] * inverse;
      for (int j = k + 1 + across; j <= i; j += kSolverSide) {
        a[i * ld + j] -= factor * a[j * ld + k];
      }
    }
    team.Sync();
  }
  for (int i = down; i < n; i += height) {
    for (int j = across; j < i; j += kSolverSide) a[i * ld + j] *= rsqrt(a[j * ld + j]);
  }
  team.Sync();
  for (int i = team.rank; i < n; i += team.size) {
    a[i * ld + i] = sqrt(a[i * ld + i]);
  }
  team.Sync();
  return true;
}

// a := a^-1 up to order: the inverse's entry (k, pivots[j]) is left at (pivots[k], j). Gauss-Jordan
// with the largest pivot of each column. False where one is 0 or not finite. `line`: 3n doubles,
// `pivots`: n ints, both in shared memory.
__device__ inline bool InvertInPlace(const Team& team, int n, double* a, int ld, double* line,
                                     int* pivots) {
  if (n <= kSolverSide) return InvertHeld<4, 1>(team, n, a, ld, line, pivots);
  if (n <= 2 * kSolverSide) return InvertHeld<4, 2>(team, n, a, ld, line, pivots);
  if (n <= kLargestHeld) return InvertHeld<4, 4>(team, n, a, ld, line, pivots);
  const int down = team.rank / kSolverSide;
  const int across = team.rank % kSolverSide;
  const int height = team.size / kSolverSide;
  double* const pivot_row = line;
  double* const pivot_column = line + n;
  unsigned used = 0;  // bit i / 32 of lane i % 32: row i has been a pivot
  for (int k = 0; k < n; ++k) {
    if (team.rank < kWarp) {
      double largest = 0.0;
      int at = n;
      for (int i = team.rank; i < n; i += kWarp) {
        const double magnitude = fabs(a[i * ld + k]);
        if ((used >> i / kWarp & 1) == 0 && magnitude > largest && magnitude < INFINITY) {
          largest = magnitude;
          at = i;
        }
      }
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const double other = __shfl_xor_sync(~0u, largest, offset);
        const int other_at = __shfl_xor_sync(~0u, at, offset);
        if (other > largest || (other == largest && other_at < at)) {
          largest = other;
          at = other_at;
        }
      }
      if (at % kWarp == team.rank) used |= 1u << at / kWarp;
      if (team.rank == 0) pivots[k] = at;
    }
    team.Sync();
    const int pivot = pivots[k];
    if (pivot == n) {
      team.Sync();
      return false;
    }
    for (int i = team.rank; i < n; i += team.size) {
      pivot_row[i] = a[pivot * ld + i];
      pivot_column[i] = a[i * ld + k];
    }
    team.Sync();
    const double inverse = 1.0 / pivot_row[k];
    for (int i = down; i < n; i += height) {
      const double factor = pivot_column[i] * inverse;
      for (int j = across; j < n; j += kSolverSide) {
        double& entry = a[i * ld + j];
        if (i == pivot) {
          entry = j == k ? inverse : pivot_row[j] * inverse;
        } else {
          entry = j == k ? -factor : entry - factor * pivot_row[j];
        }
      }
    }
    team.Sync();
  }
  return true;
}

// 1 / sqrt(x) to about 20 bits, for x well inside the range of float64.
__device__ inline double RoughReciprocalRoot(double x) {
  double root;
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(root) : "d"(x));
  return root;
}

struct Rotation {
  double cosine;
  double sine;
};

// What makes columns of squared norms p and q and this inner product orthogonal. The angle is
// accurate to 20 bits, which leaves as much of the inner product; the rotation itself is orthogonal
// to the last bit.
__device__ inline Rotation Orthogonalizer(double p, double q, double cross) {
  const double difference = q - p;
  const double reciprocal = RoughReciprocalRoot(fma(difference, difference, 4.0 * cross * cross));
  const double cosine_squared = fma(0.5 * fabs(difference), reciprocal, 0.5);
  const double inverse_cosine = RoughReciprocalRoot(cosine_squared);
  const double cosine = cosine_squared * inverse_cosine;
  const double sine = copysign(1.0, difference) * cross * reciprocal * inverse_cosine;
  const double excess = 1.0 - fma(cosine, cosine, sine * sine);
  const double scale = fma(excess, fma(0.375, excess, 0.5), 1.0);
  return {cosine * scale, sine * scale};
}

// Columns that meet in a round of a tournament among `even` of them: each two meet once in
// even - 1 rounds.
struct ColumnPair {
  int p;
  int q;
};
__device__ inline ColumnPair PairOf(int even, int round, int pair) {
  const int circle = even - 1;
  if (pair == 0) return {round, circle};
  int p = round + pair;
  int q = round - pair;
  if (p >= circle) p -= circle;
  if (q < 0) q += circle;
  return {p, q};
}

// One-sided Jacobi (Hestenes): rotates the n columns of g, each contiguous, to orthogonality and
// the columns of v along; v may be null. The first half of the threads finds the rotations, the
// second half applies those of the round before to v. `norms`: n doubles, `rotations`: 2 (n + 1),
// all in shared memory. kLanes threads hold a column, kEntries entries each: n <= kLanes kEntries.
// kExact: n is that product and ld is ColumnStride(n), which saves index arithmetic.
template <int kLanes, int kEntries, bool kExact>
__device__ void OrthogonalizeColumns(int given_n, double* g, double* v, int given_ld, double* norms,
                                     Rotation* rotations) {
  const int n = kExact ? kLanes * kEntries : given_n;
  const int ld = kExact ? ColumnStride(kLanes * kEntries) : given_ld;
  constexpr int kMaxSweeps = 60;
  // As in the CPU's: what is below is orthogonal.
  constexpr double kOrthogonal = 4 * 2.220446049250313e-16;
  // A sweep whose inner products were all below leaves their products and 2^-20 of them.
  constexpr double kLast = 1e-7;
  constexpr double kLastSine = 1e-4;
  constexpr double kNothing = 1e-280;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const unsigned shift = threadIdx.x % kWarp / kLanes * kLanes;
  const unsigned mask = kLanes == kWarp ? ~0u : ((1u << (kLanes % kWarp)) - 1) << shift;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const int groups = static_cast<int>(blockDim.x) / kLanes / 2;
  const bool leads = group < groups;
  const int even = (n + 1) / 2 * 2;
  const int pairs = even / 2;

  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    for (int c = group; c < n; c += 2 * groups) {
      double sum = 0.0;
#pragma unroll
      for (int e = 0; e < kEntries; ++e) {
        const int i = lane + e * kLanes;
        if (i < n) sum = fma(g[c * ld + i], g[c * ld + i], sum);
      }
#pragma unroll
      for (int offset = kLanes / 2; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(mask, sum, offset);
      }
      if (lane == 0) norms[c] = sum;
    }
    __syncthreads();
    bool unfinished = false;
    for (int round = 0; round < even; ++round) {
      Rotation* const now = rotations + round % 2 * pairs;
      const Rotation* const before = rotations + (round + 1) % 2 * pairs;
      if (leads && round + 1 < even) {
        for (int k = group; k < pairs; k += groups) {
          const ColumnPair at = PairOf(even, round, k);
          Rotation rotation = {1.0, 0.0};
          if (at.q < n) {
            double x[kEntries];
            double y[kEntries];
            double cross = 0.0;
#pragma unroll
            for (int e = 0; e < kEntries; ++e) {
              const int i = lane + e * kLanes;
              x[e] = i < n ? g[at.p * ld + i] : 0.0;
              y[e] = i < n ? g[at.q * ld + i] : 0.0;
              cross = fma(x[e], y[e], cross);
            }
            const double p = norms[at.p];
            const double q = norms[at.q];
#pragma unroll
            for (int offset = kLanes / 2; offset > 0; offset /= 2) {
              cross += __shfl_xor_sync(mask, cross, offset);
            }
            const double square = cross * cross;
            const double scale = p * q;
            if (square > kOrthogonal * kOrthogonal * scale && square > kNothing) {
              rotation = Orthogonalizer(p, q, cross);
              const double c = rotation.cosine;
              const double s = rotation.sine;
              unfinished |= square > kLast * kLast * scale || s * s > kLastSine * kLastSine;
#pragma unroll
              for (int e = 0; e < kEntries; ++e) {
                const int i = lane + e * kLanes;
                if (i >= n) continue;
                g[at.p * ld + i] = c * x[e] - s * y[e];
                g[at.q * ld + i] = s * x[e] + c * y[e];
              }
              __syncwarp(mask);  // all lanes have read the norms
              if (lane == 0) {
                const double mixed = 2.0 * c * s * cross;
                norms[at.p] = fmax(c * c * p - mixed + s * s * q, 0.0);
                norms[at.q] = fmax(s * s * p + mixed + c * c * q, 0.0);
              }
            }
          }
          if (lane == 0) now[k] = rotation;
        }
      }
      if (!leads && round > 0 && v != nullptr) {
        for (int k = group - groups; k < pairs; k += groups) {
          const Rotation rotation = before[k];
          if (rotation.sine == 0.0) continue;
          const ColumnPair at = PairOf(even, round - 1, k);
#pragma unroll
          for (int e = 0; e < kEntries; ++e) {
            const int i = lane + e * kLanes;
            if (i >= n) continue;
            const double x = v[at.p * ld + i];
            const double y = v[at.q * ld + i];
            v[at.p * ld + i] = rotation.cosine * x - rotation.sine * y;
            v[at.q * ld + i] = rotation.sine * x + rotation.cosine * y;
          }
        }
      }
      __syncthreads();
    }
    if (!__syncthreads_or(unfinished)) return;
  }
}

// The largest magnitude of a matrix, rounded down to a power of two; 1 for none.
// `scratch`: 32 doubles in shared memory.
__device__ inline double LargestPower(int rows, int columns, const double* at, int ld,
                                      double* scratch) {
  double largest = 0.0;
  for (int i = static_cast<int>(threadIdx.x); i < rows * columns;
       i += static_cast<int>(blockDim.x)) {
    largest = fmax(largest, fabs(at[i / columns * ld + i % columns]));
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    largest = fmax(largest, __shfl_xor_sync(~0u, largest, offset));
  }
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = largest;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int i = 0; i < warps; ++i) largest = fmax(largest, scratch[i]);
  __syncthreads();
  return largest > 0.0 && largest < INFINITY ? ldexp(1.0, ilogb(largest)) : 1.0;
}

}  // namespace quantd::compute
