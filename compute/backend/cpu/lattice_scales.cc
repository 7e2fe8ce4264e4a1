#include "compute/backend/cpu/lattice_scales.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "compute/backend/cpu/cholesky.h"
#include "compute/backend/cpu/host_memory.h"
#include "compute/backend/cpu/matrix_product.h"

namespace quantd::compute {
namespace {

// What the published code uses; the golden data depends on it.
constexpr double kRidge = 1e-8;  // of the mean of what it is added to
constexpr double kLeastFactor = -0.1;
constexpr double kLargestFactor = 1.5;
constexpr double kLeastGain = 3e-4;  // relative decrease of the loss that is worth another round
constexpr int64_t kMaxRounds = 25;

constexpr int64_t kTileRows = 128;   // rows of W in a piece
constexpr int64_t kTileCols = 192;   // side of a tile of C x C
constexpr int kMaxRidgeRetries = 3;  // a second moment that is indefinite by rounding

// sums[c] += weight * the dot product of column c of `a` and of `b`, both `height` x `width`.
void AddDots(int64_t width, int64_t height, const double* a, int64_t lda, const double* b,
             int64_t ldb, double weight, double* sums) {
  for (int64_t r = 0; r < height; ++r) {
    for (int64_t c = 0; c < width; ++c) sums[c] += weight * a[r * lda + c] * b[r * ldb + c];
  }
}

// Fits What = diag(t) Z diag(alpha g) to the layer; see Backend::FitLatticeScales. W0 = Z
// diag(alpha) is kept transposed, C x R.
class Fit {
 public:
  Fit(WorkerPool& pool, Stream& stream, const LatticeProblem& problem, const DeviceTensor& codes,
      const std::vector<double>& spacing)
      : pool_(pool),
        stream_(stream),
        problem_(problem),
        rows_(codes.dim(1)),
        cols_(codes.dim(0)),
        base_(rows_ * cols_),
        energy_(rows_),
        agreement_(rows_) {
    const int32_t* z = HostTensor(codes).as<int32_t>().data();
    pool_.ParallelFor(0, cols_, 16, [&](int64_t b, int64_t e) {
      for (int64_t i = b * rows_; i < e * rows_; ++i) base_[i] = spacing[i / rows_] * z[i];
    });
  }

  absl::StatusOr<LatticeScales> Alternate(const std::vector<double>& gamma) {
    LatticeScales scales = {.row = std::vector<double>(rows_, 1.0), .column = gamma};
    MeasureRows(scales.column);
    scales.loss = Loss(scales.row);
    while (scales.rounds < kMaxRounds) {
      if (absl::Status status = stream_.CheckCancelled(); !status.ok()) return status;
      LatticeScales next = {.row = scales.row, .column = scales.column};
      const bool has_columns = FitColumns(next);
      if (absl::Status status = stream_.CheckCancelled(); !status.ok()) return status;
      if (!has_columns) break;
      MeasureRows(next.column);
      FitRows(next.row);
      Normalize(next);
      next.loss = Loss(next.row);
      if (!(next.loss <= scales.loss)) break;  // roll back
      const bool settled = scales.loss - next.loss <= kLeastGain * scales.loss;
      next.rounds = scales.rounds + 1;
      scales = std::move(next);
      if (settled) break;
    }
    return scales;
  }

  std::vector<double> Rows() {
    std::vector<double> row(rows_);
    MeasureRows(std::vector<double>(cols_, 1.0));
    FitRows(row);
    return row;
  }

 private:
  // energy_ = diag(W0 G Mhat G W0^T), agreement_ = diag(K G W0^T).
  void MeasureRows(const std::vector<double>& factor) {
    const double* moment = Doubles(problem_.moment_hat);
    const double* correlation = Doubles(problem_.correlation);
    pool_.ParallelFor(0, rows_, kTileRows, [&](int64_t b, int64_t e) {
      if (!stream_.CheckCancelled().ok()) return;
      const int64_t width = e - b;
      std::vector<double> columns(cols_ * width);
      for (int64_t c = 0; c < cols_; ++c) {
        for (int64_t r = 0; r < width; ++r) {
          columns[c * width + r] = factor[c] * base_[c * rows_ + b + r];
        }
      }
      std::fill(energy_.begin() + b, energy_.begin() + e, 0.0);
      std::fill(agreement_.begin() + b, agreement_.begin() + e, 0.0);
      AddDots(width, cols_, columns.data(), width, correlation + b, rows_, 1.0,
              agreement_.data() + b);
      // x^T M x of a symmetric M: twice what is left of the diagonal blocks, and the blocks.
      std::vector<double> product(kTileCols * width);
      for (int64_t i = 0; i < cols_; i += kTileCols) {
        const int64_t height = std::min(kTileCols, cols_ - i);
        const double* rows = columns.data() + i * width;
        const auto add = [&](int64_t from, int64_t count, double weight) {
          Multiply(height, width, count, moment + i * cols_ + from, cols_,
                   columns.data() + from * width, width, product.data(), width);
          AddDots(width, height, rows, width, product.data(), width, weight, energy_.data() + b);
        };
        if (i > 0) add(0, i, 2.0);
        add(i, height, 1.0);
      }
    });
    scale_ = 1.0;
  }

  // t_i = [K G W0^T]_ii / [W0 G Mhat G W0^T]_ii, after MeasureRows.
  void FitRows(std::vector<double>& row) const {
    const double mean =
        std::accumulate(energy_.begin(), energy_.end(), 0.0) / static_cast<double>(rows_);
    for (int64_t r = 0; r < rows_; ++r) {
      const double divisor = energy_[r] + kRidge * mean;
      row[r] = divisor > 0.0 ? agreement_[r] / divisor : 1.0;
    }
  }

  // sum |t| = R; the product of the two scales stays.
  void Normalize(LatticeScales& scales) {
    double mean = 0.0;
    for (const double t : scales.row) mean += std::abs(t) / static_cast<double>(rows_);
    if (!(mean > 0.0)) return;
    for (double& t : scales.row) t /= mean;
    for (double& g : scales.column) g *= mean;
    scale_ = mean;
  }

  // tr(W M W^T) - 2 tr(K What^T) + tr(What Mhat What^T) for the columns last measured.
  double Loss(const std::vector<double>& row) const {
    double loss = problem_.energy;
    for (int64_t r = 0; r < rows_; ++r) {
      const double t = row[r] * scale_;
      loss += t * (t * energy_[r] - 2.0 * agreement_[r]);
    }
    return loss;
  }

  // g = (Mhat o (W0^T diag(t^2) W0) + ridge)^-1 diag(W0^T diag(t) K), clipped. False where no ridge
  // makes the matrix positive definite.
  bool FitColumns(LatticeScales& scales) {
    std::vector<double> right(cols_);
    std::vector<double> normal = NormalMatrix(scales.row, right);
    double mean = 0.0;
    for (int64_t i = 0; i < cols_; ++i) mean += normal[i * cols_ + i] / static_cast<double>(cols_);
    if (!(mean > 0.0)) return false;
    double ridge = kRidge * mean;
    for (int attempt = 0; attempt <= kMaxRidgeRetries; ++attempt, ridge *= 100.0) {
      std::vector<double> factor = normal;
      for (int64_t i = 0; i < cols_; ++i) factor[i * cols_ + i] += ridge;
      if (!FactorCholesky(pool_, cols_, factor.data(), &stream_)) continue;
      SolveLower(cols_, 1, factor.data(), cols_, right.data(), 1);
      SolveLowerTransposed(cols_, 1, factor.data(), cols_, right.data(), 1);
      for (int64_t i = 0; i < cols_; ++i) {
        scales.column[i] = std::clamp(right[i], kLeastFactor, kLargestFactor);
      }
      return true;
    }
    return false;
  }

  // The lower triangle of Mhat o (W0^T diag(t^2) W0), and the right-hand side.
  std::vector<double> NormalMatrix(const std::vector<double>& row, std::vector<double>& right) {
    const double* correlation = Doubles(problem_.correlation);
    const double* moment = Doubles(problem_.moment_hat);
    std::vector<double> weighted(rows_ * cols_);
    pool_.ParallelFor(0, cols_, 16, [&](int64_t b, int64_t e) {
      for (int64_t c = b; c < e; ++c) {
        double sum = 0.0;
        for (int64_t r = 0; r < rows_; ++r) {
          const double value = row[r] * base_[c * rows_ + r];
          weighted[c * rows_ + r] = value;
          sum += value * correlation[c * rows_ + r];
        }
        right[c] = sum;
      }
    });
    std::vector<double> normal(cols_ * cols_);
    const int64_t tiles = (cols_ + kTileCols - 1) / kTileCols;
    pool_.ParallelFor(0, tiles * tiles, 1, [&](int64_t piece, int64_t) {
      const int64_t i = piece / tiles * kTileCols;
      const int64_t j = piece % tiles * kTileCols;
      if (j > i || !stream_.CheckCancelled().ok()) return;
      const int64_t height = std::min(kTileCols, cols_ - i);
      const int64_t width = std::min(kTileCols, cols_ - j);
      MultiplyTransposed(height, width, rows_, weighted.data() + i * rows_, rows_,
                         weighted.data() + j * rows_, rows_, normal.data() + i * cols_ + j, cols_);
      for (int64_t k = i; k < i + height; ++k) {
        for (int64_t l = j; l < j + width; ++l) normal[k * cols_ + l] *= moment[k * cols_ + l];
      }
    });
    return normal;
  }

  WorkerPool& pool_;
  const Stream& stream_;
  const LatticeProblem& problem_;
  const int64_t rows_;
  const int64_t cols_;
  std::vector<double> base_;       // W0^T
  std::vector<double> energy_;     // R, of the columns last measured
  std::vector<double> agreement_;  // R
  double scale_ = 1.0;             // what Normalize moved from rows to columns since
};

}  // namespace

absl::StatusOr<LatticeScales> CpuFitLatticeScales(WorkerPool& pool, Stream& stream,
                                                  const LatticeProblem& problem,
                                                  const LatticeCodes& codes,
                                                  const std::vector<double>& spacing) {
  absl::StatusOr<LatticeScales> scales =
      Fit(pool, stream, problem, codes.codes, spacing).Alternate(codes.gamma);
  if (!scales.ok()) return scales.status();
  for (size_t i = 0; i < spacing.size(); ++i) scales->column[i] *= spacing[i];
  return scales;
}

absl::StatusOr<std::vector<double>> CpuFitRowScales(WorkerPool& pool, Stream& stream,
                                                    const LatticeProblem& problem,
                                                    const DeviceTensor& codes,
                                                    const std::vector<double>& column_scale) {
  std::vector<double> rows = Fit(pool, stream, problem, codes, column_scale).Rows();
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  return rows;
}

}  // namespace quantd::compute
