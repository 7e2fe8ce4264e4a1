#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"
#include "compute/recipe/recipe.h"

namespace quantd::compute {

// Relative damping of the conditional solver, fixed by the published code.
inline constexpr double kConditionalDamping = 1e-2;

struct BlockTransformProblem {
  TransformKind kind = TransformKind::kHadamard;  // all but kIdentity, which has no blocks to solve
  Solver solver = Solver::kMarginal;              // kWus and kWush
  int64_t block_size = 32;  // B, divides cols; a power of two for kHadamard and kWush
  double damping = 1e-2;    // l of the marginal solver, relative to the mean diagonal of a block
  uint64_t seed = 0;        // kRandom
  int64_t rows = 0;         // R
  int64_t cols = 0;         // C
  absl::Span<const double> weight = {};  // R x C, finite; read by kWus and kWush
  // E[x x^T], finite; read by kWus and kWush, lower triangles only. Marginal: its C/B x B x B
  // diagonal blocks. Conditional: C x C.
  absl::Span<const double> second_moment = {};
  const Stream* stream = nullptr;  // whose cancellation ends the solving; null: nothing does
};

// A stack of C/B transforms of B x B, row-major: x' = tx x, w' = tw w.
struct HostTransform {
  std::vector<float> tx;
  std::vector<double> tw;      // inverse transpose of the rounded tx
  std::vector<double> trace;   // tr(S) of each block; empty for kHadamard and kRandom
  double condition_max = 1.0;  // largest 2-norm condition number of a block of tx
  int64_t damped_blocks = 0;   // blocks that needed more damping than asked
  double damping_max = 0.0;    // largest relative damping used; 0 for kHadamard and kRandom
};

// Solves every block's transform in float64 (WUSH, arXiv 2512.00956):
//   marginal:     Mw = W_b^T W_b / R and Mx = M_bb, each damped by l tr/B;  Lw, Lx = chol (lower);
//                 U S V^T = svd(Lw^T Lx);  tx = H S^-1/2 U^T Lw^T.
//   conditional:  A^T A = M + 1e-2 mean(diag M) I, A upper;  V S . = svd(A_bb W_b^T);
//                 s = S/sqrt(R) + 1 % of its mean;  tx = H diag(s^1/2) V^T A_bb^-T.
// kWus leaves out H (Sylvester Hadamard / sqrt(B)). The largest-magnitude entry of each column of U
// (V) is made positive. All-zero and rank-deficient blocks and R < B give finite, invertible
// transforms. A factorization that fails is repeated with ten times the damping and counted.
// Errors: INVALID_ARGUMENT where a block of the second moment is not positive semidefinite even
// when damped by its own mean diagonal, or where a transform leaves the range of float32;
// CANCELLED. Deterministic for any number of threads.
absl::StatusOr<HostTransform> SolveBlockTransforms(WorkerPool& pool,
                                                   const BlockTransformProblem& problem);

}  // namespace quantd::compute
