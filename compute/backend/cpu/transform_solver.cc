#include "compute/backend/cpu/transform_solver.h"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/LU>
#include <Eigen/QR>
#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <optional>
#include <random>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/jacobi_svd.h"

namespace quantd::compute {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;
using RowMajorMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using WeightBlock = Eigen::Map<const RowMajorMatrix, 0, Eigen::OuterStride<>>;

// Relative to the layer's mean diagonal: invisible in a block with anything in it, and enough to
// make an all-zero one invertible and small.
constexpr double kDeadBlockFloor = 1e-12;
constexpr double kDeadSpectrumFloor = 1e-6;  // of singular values
constexpr double kMaxDamping = 1.0;

struct BlockSolution {
  MatrixXd tx;
  double trace = 0.0;
  double damping = 0.0;
  bool damped = false;
};

WeightBlock BlockOf(const BlockTransformProblem& p, int64_t block) {
  return WeightBlock(p.weight.data() + block * p.block_size, p.rows, p.block_size,
                     Eigen::OuterStride<>(p.cols));
}

// Entry (i, j) is + where i & j has an even number of ones (Sylvester's order).
MatrixXd Hadamard(int64_t n) {
  const double magnitude = 1.0 / std::sqrt(static_cast<double>(n));
  MatrixXd h(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      h(i, j) = std::popcount(static_cast<uint64_t>(i & j)) % 2 == 0 ? magnitude : -magnitude;
    }
  }
  return h;
}

// Haar-distributed: QR of a Gaussian matrix with the diagonal of R made positive (Mezzadri 2007).
// Box-Muller by hand, because std::normal_distribution differs between standard libraries.
MatrixXd RandomRotation(int64_t n, uint64_t seed, int64_t block) {
  std::seed_seq sequence{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                         static_cast<uint32_t>(block)};
  std::mt19937_64 bits(sequence);
  const auto uniform = [&bits] { return (static_cast<double>(bits() >> 11) + 0.5) * 0x1p-53; };
  MatrixXd gaussian(n, n);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < n; ++i) {
      const double radius = std::sqrt(-2.0 * std::log(uniform()));
      gaussian(i, j) = radius * std::cos(2.0 * std::numbers::pi * uniform());
    }
  }
  const Eigen::HouseholderQR<MatrixXd> qr(gaussian);
  MatrixXd rotation = qr.householderQ();
  for (int64_t j = 0; j < n; ++j) {
    if (qr.matrixQR()(j, j) < 0.0) rotation.col(j) *= -1.0;
  }
  return rotation;
}

// Lower factor of `matrix` + (damping * mean diagonal + floor) I; unset if that is not positive
// definite.
std::optional<MatrixXd> DampedCholesky(const MatrixXd& matrix, double damping, double floor) {
  const double mean = matrix.trace() / static_cast<double>(matrix.rows());
  MatrixXd damped = matrix;
  damped.diagonal().array() += damping * mean + floor;
  const Eigen::LLT<MatrixXd> llt(damped);
  if (llt.info() != Eigen::Success) return std::nullopt;
  MatrixXd lower = llt.matrixL();
  if (!lower.allFinite()) return std::nullopt;
  return lower;
}

absl::Status NotPositive(absl::string_view where) {
  return absl::InvalidArgumentError(
      absl::StrCat("second_moment: expected a positive semidefinite matrix; ", where,
                   " is not, even with its mean diagonal added"));
}

double OrOne(double value) { return value > 0.0 ? value : 1.0; }

class MarginalSolver {
 public:
  explicit MarginalSolver(const BlockTransformProblem& p)
      : p_(p), hadamard_(p.kind == TransformKind::kWush ? Hadamard(p.block_size) : MatrixXd()) {
    const double elements = static_cast<double>(p.rows) * static_cast<double>(p.cols);
    const Eigen::Map<const VectorXd> weight(p.weight.data(), p.rows * p.cols);
    weight_floor_ = OrOne(kDeadBlockFloor * weight.squaredNorm() / elements);
    double trace = 0.0;
    for (int64_t c = 0; c < p.cols; ++c) {
      trace += p.second_moment[c * p.block_size + c % p.block_size];
    }
    moment_floor_ = OrOne(kDeadBlockFloor * trace / static_cast<double>(p.cols));
  }

  absl::StatusOr<BlockSolution> Solve(int64_t block) const {
    const int64_t b = p_.block_size;
    const WeightBlock w = BlockOf(p_, block);
    const MatrixXd mw = w.transpose() * w / static_cast<double>(p_.rows);
    const MatrixXd mx =
        Eigen::Map<const RowMajorMatrix>(p_.second_moment.data() + block * b * b, b, b);
    for (double damping = p_.damping;; damping = std::min(10.0 * damping, kMaxDamping)) {
      const std::optional<MatrixXd> lw = DampedCholesky(mw, damping, weight_floor_);
      const std::optional<MatrixXd> lx = DampedCholesky(mx, damping, moment_floor_);
      if (lw.has_value() && lx.has_value()) {
        BlockSolution solution = Balance(*lw, *lx);
        solution.damping = damping;
        solution.damped = damping != p_.damping;
        return solution;
      }
      if (damping >= kMaxDamping) return NotPositive(absl::StrCat("diagonal block ", block));
    }
  }

 private:
  // With U S V^T = svd(Lw^T Lx), U are the right singular vectors of Lx^T Lw.
  BlockSolution Balance(const MatrixXd& lw, const MatrixXd& lx) const {
    const RightSingular svd = SolveRightSingular(lx.transpose() * lw);
    BlockSolution solution;
    solution.trace = svd.values.sum();
    const VectorXd inverse_root = svd.values.cwiseSqrt().cwiseInverse();
    solution.tx = inverse_root.asDiagonal() * (svd.vectors.transpose() * lw.transpose());
    if (p_.kind == TransformKind::kWush) solution.tx = hadamard_ * solution.tx;
    return solution;
  }

  const BlockTransformProblem& p_;
  const MatrixXd hadamard_;
  double weight_floor_;
  double moment_floor_;
};

// In round-to-nearest what the later blocks used of y = A[b,:] W^T is exactly their own columns'
// part, so A_bb W_b^T remains and the blocks are independent of each other.
class ConditionalSolver {
 public:
  static absl::StatusOr<ConditionalSolver> Create(const BlockTransformProblem& p) {
    ConditionalSolver solver(p);
    const MatrixXd moment =
        Eigen::Map<const RowMajorMatrix>(p.second_moment.data(), p.cols, p.cols);
    const double floor = moment.trace() > 0.0 ? 0.0 : kConditionalDamping;
    std::optional<MatrixXd> lower;
    for (double damping = kConditionalDamping; !lower.has_value(); damping *= 10.0) {
      if (damping > kMaxDamping) return NotPositive("the matrix");
      lower = DampedCholesky(moment, damping, floor);
      solver.damping_ = damping;
    }
    double energy = 0.0;
    for (int64_t block = 0; block < p.cols / p.block_size; ++block) {
      const int64_t begin = block * p.block_size;
      solver.bases_.emplace_back(
          lower->block(begin, begin, p.block_size, p.block_size).transpose());
      energy += (BlockOf(p, block) * solver.bases_.back().transpose()).squaredNorm();
    }
    const double elements = static_cast<double>(p.rows) * static_cast<double>(p.cols);
    solver.floor_ = OrOne(kDeadSpectrumFloor * std::sqrt(energy / elements));
    return solver;
  }

  absl::StatusOr<BlockSolution> Solve(int64_t block) const {
    const MatrixXd& basis = bases_[block];
    const RightSingular svd = SolveRightSingular(TriangularFactor(block));
    VectorXd s = svd.values / std::sqrt(static_cast<double>(p_.rows));
    BlockSolution solution;
    solution.trace = s.sum();
    s.array() += 0.01 * s.mean();
    s = s.cwiseMax(floor_);
    const MatrixXd solved = basis.triangularView<Eigen::Upper>().solve(svd.vectors);
    solution.tx = s.cwiseSqrt().asDiagonal() * solved.transpose();
    if (p_.kind == TransformKind::kWush) solution.tx = hadamard_ * solution.tx;
    solution.damping = damping_;
    solution.damped = damping_ != kConditionalDamping;
    return solution;
  }

 private:
  explicit ConditionalSolver(const BlockTransformProblem& p)
      : p_(p), hadamard_(p.kind == TransformKind::kWush ? Hadamard(p.block_size) : MatrixXd()) {}

  // R of y^T = Q R, whose right singular vectors are the left ones of y; zero rows where R < B.
  MatrixXd TriangularFactor(int64_t block) const {
    const int64_t b = p_.block_size;
    MatrixXd y = MatrixXd::Zero(std::max(p_.rows, b), b);
    y.topRows(p_.rows) = BlockOf(p_, block) * bases_[block].transpose();
    const Eigen::HouseholderQR<Eigen::Ref<MatrixXd>> qr(y);
    return qr.matrixQR().topRows(b).triangularView<Eigen::Upper>();
  }

  const BlockTransformProblem& p_;
  MatrixXd hadamard_;
  std::vector<MatrixXd> bases_;  // A_bb, upper
  double floor_ = 1.0;
  double damping_ = kConditionalDamping;
};

double LargestSingularValue(const MatrixXd& m) {
  const MatrixXd gram = m.transpose() * m;
  const Eigen::SelfAdjointEigenSolver<MatrixXd> solver(gram, Eigen::EigenvaluesOnly);
  return std::sqrt(std::max(solver.eigenvalues().maxCoeff(), 0.0));
}

// Rounds a block, inverts what rounding left, and returns the condition number.
absl::StatusOr<double> Store(const MatrixXd& tx, int64_t block, HostTransform& to) {
  const int64_t b = tx.rows();
  const Eigen::MatrixXf rounded = tx.cast<float>();
  // In double precision a block may be regular beyond what float32 can hold.
  const MatrixXd widened = rounded.cast<double>();
  const MatrixXd inverse = widened.partialPivLu().inverse();
  if (!widened.allFinite() || !inverse.allFinite()) {
    return absl::InvalidArgumentError(
        absl::StrCat("transform: block ", block,
                     " does not fit float32; expected weights and activations whose "
                     "magnitudes differ by less"));
  }
  using RowMajorFloat = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Eigen::Map<RowMajorFloat>(to.tx.data() + block * b * b, b, b) = rounded;
  Eigen::Map<RowMajorMatrix>(to.tw.data() + block * b * b, b, b) = inverse.transpose();
  return LargestSingularValue(widened) * LargestSingularValue(inverse);
}

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
  const bool data_aware = p.kind == TransformKind::kWus || p.kind == TransformKind::kWush;
  HostTransform result;
  result.tx.resize(p.cols * p.block_size);
  result.tw.resize(p.cols * p.block_size);
  if (data_aware) result.trace.resize(blocks);
  std::vector<BlockOutcome> outcomes(blocks);
  pool.ParallelFor(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      BlockOutcome& outcome = outcomes[block];
      const absl::StatusOr<BlockSolution> solution = solve(block);
      outcome.status = solution.status();
      if (!solution.ok()) continue;
      const absl::StatusOr<double> condition = Store(solution->tx, block, result);
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
  if (p.kind != TransformKind::kWus && p.kind != TransformKind::kWush) return absl::OkStatus();
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
      const MatrixXd hadamard = Hadamard(problem.block_size);
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
  const absl::StatusOr<ConditionalSolver> solver = ConditionalSolver::Create(problem);
  if (!solver.ok()) return solver.status();
  return SolveAll(pool, problem, [&](int64_t block) { return solver->Solve(block); });
}

}  // namespace quantd::compute
