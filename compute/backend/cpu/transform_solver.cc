#include "compute/backend/cpu/transform_solver.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/block_transform.h"
#include "compute/backend/cpu/cholesky.h"

namespace quantd::compute {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;
using RowMajorMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using WeightBlock = Eigen::Map<const RowMajorMatrix, 0, Eigen::OuterStride<>>;

constexpr double kMaxDamping = 1.0;

WeightBlock BlockOf(const BlockTransformProblem& p, int64_t block) {
  return WeightBlock(p.weight.data() + block * p.block_size, p.rows, p.block_size,
                     Eigen::OuterStride<>(p.cols));
}

absl::Status CheckCancelled(const BlockTransformProblem& p) {
  return p.stream == nullptr ? absl::OkStatus() : p.stream->CheckCancelled();
}

class MarginalSolver {
 public:
  explicit MarginalSolver(const BlockTransformProblem& p)
      : p_(p), solver_(p.kind, p.block_size, p.damping) {
    const double elements = static_cast<double>(p.rows) * static_cast<double>(p.cols);
    const Eigen::Map<const VectorXd> weight(p.weight.data(), p.rows * p.cols);
    double trace = 0.0;
    for (int64_t c = 0; c < p.cols; ++c) {
      trace += p.second_moment[c * p.block_size + c % p.block_size];
    }
    solver_.SetFloors(weight.squaredNorm() / elements, trace / static_cast<double>(p.cols));
  }

  absl::StatusOr<BlockSolution> Solve(int64_t block) const {
    const int64_t b = p_.block_size;
    const WeightBlock w = BlockOf(p_, block);
    const MatrixXd mw = w.transpose() * w / static_cast<double>(p_.rows);
    const MatrixXd mx =
        Eigen::Map<const RowMajorMatrix>(p_.second_moment.data() + block * b * b, b, b);
    return solver_.SolveMarginal(block, mw, mx);
  }

 private:
  const BlockTransformProblem& p_;
  DataAwareBlockSolver solver_;
};

// In round-to-nearest what the later blocks used of y = A[b,:] W^T is exactly their own columns'
// part, so A_bb W_b^T remains and the blocks are independent of each other.
class ConditionalSolver {
 public:
  static absl::StatusOr<ConditionalSolver> Create(WorkerPool& pool,
                                                  const BlockTransformProblem& p) {
    ConditionalSolver solver(p);
    const Eigen::Map<const RowMajorMatrix> moment(p.second_moment.data(), p.cols, p.cols);
    const double mean = moment.trace() / static_cast<double>(p.cols);
    const double unit = mean > 0.0 ? mean : 1.0;
    RowMajorMatrix lower;
    for (double damping = kConditionalDamping;; damping *= 10.0) {
      if (damping > kMaxDamping) return NotPositive("the matrix");
      lower = moment;
      lower.diagonal().array() += damping * unit;
      solver.damping_ = damping;
      const bool is_definite = FactorCholesky(pool, p.cols, lower.data(), p.stream);
      if (absl::Status status = CheckCancelled(p); !status.ok()) return status;
      if (is_definite && lower.allFinite()) break;
    }
    double energy = 0.0;
    for (int64_t block = 0; block < p.cols / p.block_size; ++block) {
      if (absl::Status status = CheckCancelled(p); !status.ok()) return status;
      const int64_t begin = block * p.block_size;
      solver.bases_.emplace_back(lower.block(begin, begin, p.block_size, p.block_size).transpose());
      energy += (BlockOf(p, block) * solver.bases_.back().transpose()).squaredNorm();
    }
    const double elements = static_cast<double>(p.rows) * static_cast<double>(p.cols);
    solver.solver_.SetSpectrumFloor(energy / elements);
    return solver;
  }

  absl::StatusOr<BlockSolution> Solve(int64_t block) const {
    const MatrixXd& basis = bases_[block];
    BlockSolution solution =
        solver_.SolveConditional(basis, BlockOf(p_, block) * basis.transpose());
    solution.damping = damping_;
    solution.damped = damping_ != kConditionalDamping;
    return solution;
  }

 private:
  explicit ConditionalSolver(const BlockTransformProblem& p)
      : p_(p), solver_(p.kind, p.block_size, p.damping) {}

  const BlockTransformProblem& p_;
  DataAwareBlockSolver solver_;
  std::vector<MatrixXd> bases_;  // A_bb, upper
  double damping_ = kConditionalDamping;
};

struct BlockOutcome {
  absl::Status status;
  double condition = 1.0;
  double damping = 0.0;
  bool damped = false;
};

template <typename Solve>
absl::StatusOr<HostTransform> SolveAll(WorkerPool& pool, const BlockTransformProblem& p,
                                       const Solve& solve) {
  const int64_t blocks = p.cols / p.block_size;
  const bool data_aware = IsDataAware(p.kind);
  HostTransform result;
  result.tx.resize(p.cols * p.block_size);
  result.tw.resize(p.cols * p.block_size);
  if (data_aware) result.trace.resize(blocks);
  std::vector<BlockOutcome> outcomes(blocks);
  pool.ParallelFor(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      BlockOutcome& outcome = outcomes[block];
      if (outcome.status = CheckCancelled(p); !outcome.status.ok()) return;
      const absl::StatusOr<BlockSolution> solution = solve(block);
      outcome.status = solution.status();
      if (!solution.ok()) continue;
      const int64_t at = block * p.block_size * p.block_size;
      const absl::StatusOr<double> condition =
          StoreBlock(solution->tx, block, result.tx.data() + at, result.tw.data() + at);
      outcome.status = condition.status();
      if (!condition.ok()) continue;
      outcome.condition = *condition;
      outcome.damping = solution->damping;
      outcome.damped = solution->damped;
      if (data_aware) result.trace[block] = solution->trace;
    }
  });
  for (const BlockOutcome& outcome : outcomes) {
    if (!outcome.status.ok()) return outcome.status;
    result.condition_max = std::max(result.condition_max, outcome.condition);
    result.damping_max = std::max(result.damping_max, outcome.damping);
    result.damped_blocks += outcome.damped ? 1 : 0;
  }
  return result;
}

absl::Status CheckSizes(const BlockTransformProblem& p) {
  if (p.block_size < 1 || p.cols < 1 || p.cols % p.block_size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("weight: expected a multiple of ", p.block_size, " columns; got ", p.cols));
  }
  if (!IsDataAware(p.kind)) return absl::OkStatus();
  if (p.rows < 1 || p.weight.size() != static_cast<size_t>(p.rows * p.cols)) {
    return absl::InvalidArgumentError(absl::StrCat("weight: expected ", p.rows, " x ", p.cols,
                                                   " elements; got ", p.weight.size()));
  }
  const int64_t expected = p.cols * (p.solver == Solver::kMarginal ? p.block_size : p.cols);
  if (p.second_moment.size() != static_cast<size_t>(expected)) {
    return absl::InvalidArgumentError(absl::StrCat("second_moment: expected ", expected,
                                                   " elements; got ", p.second_moment.size()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<HostTransform> SolveBlockTransforms(WorkerPool& pool,
                                                   const BlockTransformProblem& problem) {
  if (absl::Status status = CheckSizes(problem); !status.ok()) return status;
  switch (problem.kind) {
    case TransformKind::kIdentity:
      return absl::InvalidArgumentError("transform: identity has no blocks to solve");
    case TransformKind::kHadamard: {
      const MatrixXd hadamard = HadamardMatrix(problem.block_size);
      return SolveAll(pool, problem, [&](int64_t) -> absl::StatusOr<BlockSolution> {
        return BlockSolution{.tx = hadamard};
      });
    }
    case TransformKind::kRandom:
      return SolveAll(pool, problem, [&](int64_t block) -> absl::StatusOr<BlockSolution> {
        return BlockSolution{.tx = RandomRotation(problem.block_size, problem.seed, block)};
      });
    case TransformKind::kWus:
    case TransformKind::kWush:
      break;
  }
  if (problem.solver == Solver::kMarginal) {
    const MarginalSolver solver(problem);
    return SolveAll(pool, problem, [&](int64_t block) { return solver.Solve(block); });
  }
  const absl::StatusOr<ConditionalSolver> solver = ConditionalSolver::Create(pool, problem);
  if (!solver.ok()) return solver.status();
  return SolveAll(pool, problem, [&](int64_t block) { return solver->Solve(block); });
}

}  // namespace quantd::compute
