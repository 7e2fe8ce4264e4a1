#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// Kernels that solve block transforms (WUSH; docs/numerics.md, section 2): one thread block a
// transform block. All launchers queue on `stream` and return what launching said. Blocks of B x B
// are row-major and follow each other where nothing else is said.
namespace quantd::compute {

constexpr int kLargestTransform = 256;

enum class BlockState : int {
  kSolved = 0,
  kNotPositive = 1,    // a moment, even with its mean diagonal added
  kBeyondFloat32 = 2,  // the transform or its inverse
  kNotCoupled = 3,     // T D T^T, even with a hundredth of its mean diagonal added
};

struct BlockOutcome {
  double trace;      // tr(S)
  double damping;    // of the marginal solver, as used
  double condition;  // 2-norm, of the rounded Tx; see LaunchConditions
  BlockState state;
};

// Partial sums of W_b^T W_b: slice s of the rows of `size` consecutive columns each gives
// partial[s, block] (lower triangle). size <= 64.
struct GramSlices {
  int64_t slices;
  int64_t rows_per_slice;
};
GramSlices SliceGram(int64_t rows, int64_t blocks);
cudaError_t LaunchGramPartials(cudaStream_t stream, const double* weight, int64_t rows, int64_t ld,
                               int size, int64_t blocks, const GramSlices& slices, double* partial);

// What solves the transforms of `blocks` consecutive blocks.
struct BlockProblem {
  int size = 0;  // B
  bool hadamard = false;
  bool conditional = false;
  double damping = 0.0;         // marginal
  double weight_floor = 0.0;    // marginal: added to the diagonal of Mw
  double moment_floor = 0.0;    // marginal: added to the diagonal of Mx
  double spectrum_floor = 0.0;  // conditional: the least s
  // R Mw as `parts` partial sums, lower triangles: partial[part, block].
  const double* gram = nullptr;
  int64_t parts = 0;
  int64_t part_stride = 0;
  double rows = 1.0;  // R
  // Marginal: Mx, its lower triangle. Conditional: the lower factor L of Mx = L L^T. Of block b at
  // b * moment_stride with rows of moment_ld.
  const double* moment = nullptr;
  int64_t moment_ld = 0;
  int64_t moment_stride = 0;
  // The columns of gram and of a conditional moment are those of the block last to first, and so
  // are the blocks.
  bool reversed = false;
  // Right singular vectors to start from, columns contiguous, and where to put those found. May be
  // null. Marginal only.
  const double* start = nullptr;
  double* vectors = nullptr;
  // Not null: only mean(y^2) of each block's y = A_bb W_b^T is found. Conditional only.
  double* energies = nullptr;

  float* tx = nullptr;
  double* tw = nullptr;
  BlockOutcome* outcomes = nullptr;
  double* scratch = nullptr;  // SolverScratch(size) for each block
  // Not null (one block, which is a whole unit of GPTQ): see UnitProblem.
  const double* unit_factor = nullptr;
  int64_t unit_factor_ld = 0;
  double* coupling = nullptr;
};
// Doubles of global memory that a thread block needs: 0 where its shared memory suffices.
int64_t SolverScratch(int size);
cudaError_t LaunchSolveBlocks(cudaStream_t stream, const BlockProblem& problem, int64_t blocks);

// Tw of given Tx. Sets each block's state.
cudaError_t LaunchInvertTransforms(cudaStream_t stream, int size, int64_t blocks, const float* tx,
                                   double* tw, double* scratch, BlockOutcome* outcomes);
// Condition numbers of the blocks' Tx.
cudaError_t LaunchConditions(cudaStream_t stream, int size, int64_t blocks, const float* tx,
                             double* scratch, BlockOutcome* outcomes);

// What the columns of GPTQ's units tell each other in the space of their transform: N, unit lower
// triangular, of T D T^T = N diag N^T with D = L L^T, in the order of the unit's positions.
struct UnitProblem {
  int width = 0;                   // <= kLargestCoupled
  int size = 0;                    // B; 0: no transform, T = I
  const float* tx = nullptr;       // of the layer's first block
  const double* factor = nullptr;  // L of the layer's first position, rows of `ld`
  int64_t ld = 0;
  const int* begins = nullptr;  // of each unit: its first position
  const int* firsts = nullptr;  // of each unit: its first column
  bool reversed = false;        // with a transform: positions are columns last to first
  double* coupling = nullptr;   // width x width for each unit
  BlockState* states = nullptr;
};
constexpr int kLargestCoupled = 64;
cudaError_t LaunchCoupleUnits(cudaStream_t stream, const UnitProblem& problem, int64_t units);

}  // namespace quantd::compute
