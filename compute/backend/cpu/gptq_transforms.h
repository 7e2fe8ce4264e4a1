#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/block_transform.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// The block transforms of one layer while GPTQ finds them, block by block where they depend on the
// updated weights, all at once where not. Distinct blocks may be solved by several threads at once.
class GptqTransforms {
 public:
  // Solves what does not depend on weights. Errors of SolveBlockTransforms.
  static absl::StatusOr<GptqTransforms> Create(WorkerPool& pool, const Stream& stream,
                                               const GptqProblem& problem);

  bool identity() const { return identity_; }
  // Whether blocks are left to Solve.
  bool data_aware() const { return data_aware_; }
  bool conditional() const { return conditional_; }
  int64_t block_size() const { return block_size_; }

  // `mean_square_output` of all A_bb W_b^T; conditional solver, before the first block.
  void SetSpectrumFloor(double mean_square_output);
  // From Mw = W_b^T W_b / R of the updated weights (WUSH's marginal solver).
  absl::Status SolveMarginal(int64_t block, const Eigen::MatrixXd& mw);
  // From A_bb, upper, and W_b A_bb^T (R x B) of the updated weights.
  absl::Status SolveConditional(int64_t block, const Eigen::MatrixXd& basis,
                                Eigen::MatrixXd y_transposed);

  // B x B, row-major; following blocks follow.
  const double* tx(int64_t block) const { return Block(widened_, block); }
  const double* tw(int64_t block) const { return Block(tw_, block); }

  // Everything solved, on the device.
  TransformSolution Finish(Stream& stream) &&;

 private:
  struct BlockOutcome {
    double trace = 0.0;
    double condition = 1.0;
    double damping = 0.0;
    bool damped = false;
  };

  GptqTransforms(const GptqProblem& problem, int64_t cols);
  const double* Block(const std::vector<double>& stack, int64_t block) const {
    return stack.data() + block * block_size_ * block_size_;
  }
  void Allocate();
  absl::Status Take(absl::Span<const float> stack);
  absl::Status Store(int64_t block, const BlockSolution& solution);

  bool identity_ = false;
  bool data_aware_ = false;
  bool conditional_ = false;
  int64_t block_size_ = 0;
  int64_t cols_ = 0;
  const double* moment_ = nullptr;  // C x C
  DataAwareBlockSolver solver_;
  std::vector<float> tx_;
  std::vector<double> widened_;  // tx_
  std::vector<double> tw_;
  std::vector<BlockOutcome> outcomes_;  // by block; where solved or taken block by block
  double condition_max_ = 1.0;          // of what was not solved block by block
};

}  // namespace quantd::compute
