#pragma once

#include <Eigen/Core>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/recipe/recipe.h"

// One block of a transform (WUSH, arXiv 2512.00956), float64: the formulas are in
// transform_solver.h, which solves whole stacks of them. All functions are thread-safe.
namespace quantd::compute {

struct BlockSolution {
  Eigen::MatrixXd tx = {};  // B x B
  double trace = 0.0;       // tr(S)
  double damping = 0.0;
  bool damped = false;  // more than asked
};

// Sylvester's Hadamard matrix / sqrt(n).
Eigen::MatrixXd HadamardMatrix(int64_t n);
// Haar-distributed, by seed and block.
Eigen::MatrixXd RandomRotation(int64_t n, uint64_t seed, int64_t block);

// What keeps dead blocks solvable: added to the diagonals of blocks of a matrix whose mean diagonal
// this is, and the least singular value of y = A_bb W_b^T where this is the mean square of all y.
double BlockFloor(double mean_diagonal);
double SpectrumFloor(double mean_square_output);

// What the blocks of one layer have in common.
class DataAwareBlockSolver {
 public:
  // `kind` is kWus or kWush; `damping` is the marginal solver's l.
  DataAwareBlockSolver(TransformKind kind, int64_t block_size, double damping);

  // Keeps dead blocks solvable: relative to the layer's mean square of weights and mean diagonal of
  // the second moment. Before SolveMarginal.
  void SetFloors(double mean_square_weight, double mean_diagonal);
  // The same for SolveConditional: `energy` is the mean square of all y = A_bb W_b^T.
  void SetSpectrumFloor(double mean_square_output);

  // From Mw = W_b^T W_b / R and Mx. INVALID_ARGUMENT where one of them is not positive semidefinite
  // even with its mean diagonal added; `block` is for the message.
  absl::StatusOr<BlockSolution> SolveMarginal(int64_t block, const Eigen::MatrixXd& mw,
                                              const Eigen::MatrixXd& mx) const;
  // From the upper triangular A_bb and y^T = W_b A_bb^T (R x B, destroyed).
  BlockSolution SolveConditional(const Eigen::MatrixXd& basis, Eigen::MatrixXd y_transposed) const;

 private:
  BlockSolution Balance(const Eigen::MatrixXd& lw, const Eigen::MatrixXd& lx) const;

  TransformKind kind_;
  double damping_;
  Eigen::MatrixXd hadamard_;  // kWush
  double weight_floor_ = 1.0;
  double moment_floor_ = 1.0;
  double spectrum_floor_ = 1.0;
};

// The error of every solver for a matrix that no damping up to its mean diagonal helps.
absl::Status NotPositive(absl::string_view where);
// The error for a transform or inverse that float32 cannot hold.
absl::Status BeyondFloat32(int64_t block);

// Rounds `tx` to float32 and writes it and the inverse transpose of what rounding left, row-major.
// Returns the 2-norm condition number. INVALID_ARGUMENT where float32 cannot hold either.
absl::StatusOr<double> StoreBlock(const Eigen::MatrixXd& tx, int64_t block, float* tx_to,
                                  double* tw_to);

}  // namespace quantd::compute
