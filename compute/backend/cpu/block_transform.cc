#include "compute/backend/cpu/block_transform.h"

#include <Eigen/Cholesky>
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

// Relative to the layer's mean diagonal: invisible in a block with anything in it, and enough to
// make an all-zero one invertible and small.
constexpr double kDeadBlockFloor = 1e-12;
constexpr double kDeadSpectrumFloor = 1e-6;  // of singular values
constexpr double kMaxDamping = 1.0;

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

double OrOne(double value) { return value > 0.0 ? value : 1.0; }

double LargestSingularValue(const MatrixXd& m) {
  const MatrixXd gram = m.transpose() * m;
  const Eigen::SelfAdjointEigenSolver<MatrixXd> solver(gram, Eigen::EigenvaluesOnly);
  return std::sqrt(std::max(solver.eigenvalues().maxCoeff(), 0.0));
}

}  // namespace

// Entry (i, j) is + where i & j has an even number of ones (Sylvester's order).
MatrixXd HadamardMatrix(int64_t n) {
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

absl::Status NotPositive(absl::string_view where) {
  return absl::InvalidArgumentError(
      absl::StrCat("second_moment: expected a positive semidefinite matrix; ", where,
                   " is not, even with its mean diagonal added"));
}

absl::Status BeyondFloat32(int64_t block) {
  return absl::InvalidArgumentError(
      absl::StrCat("transform: block ", block,
                   " does not fit float32; expected weights and activations whose "
                   "magnitudes differ by less"));
}

double BlockFloor(double mean_diagonal) { return OrOne(kDeadBlockFloor * mean_diagonal); }

double SpectrumFloor(double mean_square_output) {
  return OrOne(kDeadSpectrumFloor * std::sqrt(mean_square_output));
}

DataAwareBlockSolver::DataAwareBlockSolver(TransformKind kind, int64_t block_size, double damping)
    : kind_(kind),
      damping_(damping),
      hadamard_(kind == TransformKind::kWush ? HadamardMatrix(block_size) : MatrixXd()) {}

void DataAwareBlockSolver::SetFloors(double mean_square_weight, double mean_diagonal) {
  weight_floor_ = BlockFloor(mean_square_weight);
  moment_floor_ = BlockFloor(mean_diagonal);
}

void DataAwareBlockSolver::SetSpectrumFloor(double mean_square_output) {
  spectrum_floor_ = SpectrumFloor(mean_square_output);
}

absl::StatusOr<BlockSolution> DataAwareBlockSolver::SolveMarginal(int64_t block, const MatrixXd& mw,
                                                                  const MatrixXd& mx) const {
  for (double damping = damping_;; damping = std::min(10.0 * damping, kMaxDamping)) {
    const std::optional<MatrixXd> lw = DampedCholesky(mw, damping, weight_floor_);
    const std::optional<MatrixXd> lx = DampedCholesky(mx, damping, moment_floor_);
    if (lw.has_value() && lx.has_value()) {
      BlockSolution solution = Balance(*lw, *lx);
      solution.damping = damping;
      solution.damped = damping != damping_;
      return solution;
    }
    if (damping >= kMaxDamping) return NotPositive(absl::StrCat("diagonal block ", block));
  }
}

// With U S V^T = svd(Lw^T Lx), U are the right singular vectors of Lx^T Lw.
BlockSolution DataAwareBlockSolver::Balance(const MatrixXd& lw, const MatrixXd& lx) const {
  const RightSingular svd = SolveRightSingular(lx.transpose() * lw);
  BlockSolution solution;
  solution.trace = svd.values.sum();
  const VectorXd inverse_root = svd.values.cwiseSqrt().cwiseInverse();
  solution.tx = inverse_root.asDiagonal() * (svd.vectors.transpose() * lw.transpose());
  if (kind_ == TransformKind::kWush) solution.tx = hadamard_ * solution.tx;
  return solution;
}

BlockSolution DataAwareBlockSolver::SolveConditional(const MatrixXd& basis,
                                                     MatrixXd y_transposed) const {
  // R of y^T = Q R, whose right singular vectors are the left ones of y; zero rows where R < B.
  const int64_t b = basis.rows();
  const int64_t rows = y_transposed.rows();
  if (rows < b) {
    y_transposed.conservativeResize(b, b);
    y_transposed.bottomRows(b - rows).setZero();
  }
  const Eigen::HouseholderQR<Eigen::Ref<MatrixXd>> qr(y_transposed);
  const MatrixXd factor = qr.matrixQR().topRows(b).triangularView<Eigen::Upper>();
  const RightSingular svd = SolveRightSingular(factor);
  VectorXd s = svd.values / std::sqrt(static_cast<double>(rows));
  BlockSolution solution;
  solution.trace = s.sum();
  s.array() += 0.01 * s.mean();
  s = s.cwiseMax(spectrum_floor_);
  const MatrixXd solved = basis.triangularView<Eigen::Upper>().solve(svd.vectors);
  solution.tx = s.cwiseSqrt().asDiagonal() * solved.transpose();
  if (kind_ == TransformKind::kWush) solution.tx = hadamard_ * solution.tx;
  return solution;
}

absl::StatusOr<double> StoreBlock(const MatrixXd& tx, int64_t block, float* tx_to, double* tw_to) {
  const int64_t b = tx.rows();
  const Eigen::MatrixXf rounded = tx.cast<float>();
  // In double precision a block may be regular beyond what float32 can hold.
  const MatrixXd widened = rounded.cast<double>();
  const MatrixXd inverse = widened.partialPivLu().inverse();
  if (!widened.allFinite() || !inverse.allFinite()) return BeyondFloat32(block);
  using RowMajorFloat = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Eigen::Map<RowMajorFloat>(tx_to, b, b) = rounded;
  Eigen::Map<RowMajorMatrix>(tw_to, b, b) = inverse.transpose();
  return LargestSingularValue(widened) * LargestSingularValue(inverse);
}

}  // namespace quantd::compute
