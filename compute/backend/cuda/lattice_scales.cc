#include "compute/backend/cuda/lattice_scales.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "compute/backend/cuda/code_products.h"
#include "compute/backend/cuda/conjugate_gradients.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/lattice_scales_kernels.h"
#include "compute/backend/cuda/matrix.h"
#include "compute/backend/cuda/moment_factor.h"

namespace quantd::compute {
namespace {

// As on the CPU.
constexpr double kRidge = 1e-8;  // of the mean of what it is added to
constexpr double kLeastFactor = -0.1;
constexpr double kLargestFactor = 1.5;
constexpr double kLeastGain = 3e-4;  // relative decrease of the loss that is worth another round
constexpr int kMaxRounds = 25;
constexpr int kMaxRidgeRetries = 3;  // a second moment that is indefinite by rounding

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Fits What = diag(t) Z diag(alpha g) to the layer; see Backend::FitLatticeScales. What is one
// number a row or a column is kept on the host, where rounds are decided.
class Fit {
 public:
  Fit(CudaStream& stream, const LatticeProblem& problem, const DeviceTensor& codes,
      const std::vector<double>& spacing, std::unique_ptr<CodeProducts> products)
      : stream_(stream),
        problem_(problem),
        spacing_(spacing),
        rows_(codes.dim(1)),
        cols_(codes.dim(0)),
        codes_(DeviceData<int32_t>(codes)),
        products_(std::move(products)) {}

  absl::StatusOr<LatticeScales> Alternate(const std::vector<double>& gamma) {
    LatticeScales scales = {.row = std::vector<double>(rows_, 1.0), .column = gamma};
    if (absl::Status status = MeasureRows(scales.column); !status.ok()) return status;
    scales.loss = Loss(scales.row);
    while (scales.rounds < kMaxRounds) {
      if (absl::Status status = stream_.CheckCancelled(); !status.ok()) return status;
      LatticeScales next = {.row = scales.row, .column = scales.column};
      const absl::StatusOr<bool> fitted = FitColumns(next);
      if (!fitted.ok()) return fitted.status();
      if (!*fitted) break;
      if (absl::Status status = MeasureRows(next.column); !status.ok()) return status;
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

  absl::StatusOr<std::vector<double>> Rows() {
    if (absl::Status status = MeasureRows(std::vector<double>(cols_, 1.0)); !status.ok()) {
      return status;
    }
    std::vector<double> row(rows_);
    FitRows(row);
    return row;
  }

 private:
  // energy_ = diag(W0 G Mhat G W0^T), agreement_ = diag(K G W0^T).
  absl::Status MeasureRows(const std::vector<double>& factor) {
    std::vector<double> scale(cols_);
    for (int64_t i = 0; i < cols_; ++i) scale[i] = spacing_[i] * factor[i];
    const auto column = Upload<double>(stream_, scale);
    if (!column.ok()) return column.status();
    const auto sums = DeviceBuffer<double>::Allocate(stream_, (2 + kRowSumSlices) * rows_);
    if (!sums.ok()) return sums.status();
    absl::Status status =
        products_->Energies(column->data(), DeviceData<double>(problem_.moment_hat), sums->data());
    if (!status.ok()) return status;
    status = ToStatus(LaunchSumRows(stream_.get(), rows_, cols_, codes_, column->data(),
                                    DeviceData<double>(problem_.correlation),
                                    sums->data() + 2 * rows_, sums->data() + rows_),
                      "summing agreements");
    if (!status.ok()) return status;
    const auto both = CopyToHost(stream_, sums->data(), 2 * rows_);
    if (!both.ok()) return both.status();
    energy_.assign(both->begin(), both->begin() + rows_);
    agreement_.assign(both->begin() + rows_, both->end());
    scale_ = 1.0;
    return absl::OkStatus();
  }

  // t_i = [K G W0^T]_ii / [W0 G Mhat G W0^T]_ii, after MeasureRows.
  void FitRows(std::vector<double>& row) const {
    const double ridge = kRidge * Mean(energy_);
    for (int64_t r = 0; r < rows_; ++r) {
      const double divisor = energy_[r] + ridge;
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
  absl::StatusOr<bool> FitColumns(LatticeScales& scales) {
    const auto spacing = Upload<double>(stream_, spacing_);
    if (!spacing.ok()) return spacing.status();
    const auto right = RightSide(scales.row, spacing->data());
    if (!right.ok()) return right.status();
    absl::StatusOr<NewTensor<double>> normal = NewDoubles(stream_, {cols_, cols_});
    if (!normal.ok()) return normal.status();
    double relative = kRidge;
    for (int attempt = 0; attempt <= kMaxRidgeRetries; ++attempt, relative *= 100.0) {
      // Built again each time: a factor takes its place.
      absl::StatusOr<bool> solved =
          BuildNormalMatrix(scales.row, spacing->data(), relative, *normal);
      if (solved.ok() && *solved) solved = Solve(normal->data, right->data());
      if (!solved.ok()) return solved.status();
      if (!*solved) continue;
      absl::StatusOr<std::vector<double>> solution = CopyToHost(stream_, right->data(), cols_);
      if (!solution.ok()) return solution.status();
      for (int64_t i = 0; i < cols_; ++i) {
        scales.column[i] = std::clamp((*solution)[i], kLeastFactor, kLargestFactor);
      }
      return true;
    }
    return false;
  }

  // diag(W0^T diag(t) K)
  absl::StatusOr<DeviceBuffer<double>> RightSide(const std::vector<double>& row,
                                                 const double* spacing) {
    const auto t = Upload<double>(stream_, row);
    if (!t.ok()) return t.status();
    auto right = DeviceBuffer<double>::Allocate(stream_, cols_);
    if (!right.ok()) return right.status();
    absl::Status status =
        ToStatus(LaunchSumColumns(stream_.get(), rows_, cols_, codes_, spacing, t->data(),
                                  DeviceData<double>(problem_.correlation), right->data()),
                 "correlating columns");
    if (!status.ok()) return status;
    return right;
  }

  // Both triangles, with `relative` of the mean diagonal added. False where that mean is not
  // positive.
  absl::StatusOr<bool> BuildNormalMatrix(const std::vector<double>& row, const double* spacing,
                                         double relative, const NewTensor<double>& normal) {
    std::vector<double> squares;
    squares.reserve(row.size());
    for (const double t : row) squares.push_back(t * t);
    const auto weight = Upload<double>(stream_, squares);
    if (!weight.ok()) return weight.status();
    absl::Status status = products_->Gram(
        weight->data(), *std::max_element(squares.begin(), squares.end()), normal.data);
    if (status.ok()) {
      status = ToStatus(LaunchScaleSymmetric(stream_.get(), cols_, spacing,
                                             DeviceData<double>(problem_.moment_hat), normal.data),
                        "building the normal matrix");
    }
    if (!status.ok()) return status;
    const absl::StatusOr<std::vector<double>> diagonal = CudaDiagonal(stream_, normal.tensor);
    if (!diagonal.ok()) return diagonal.status();
    const double mean = Mean(*diagonal);
    if (!(mean > 0.0)) return false;
    status = ToStatus(LaunchAddToDiagonal(stream_.get(), cols_, relative * mean, normal.data),
                      "adding the ridge");
    if (!status.ok()) return status;
    return true;
  }

  // In place. Codes of different columns hardly agree, so that the matrix is nearly diagonal; where
  // it is not, its Cholesky factor takes its place. False where it has none.
  absl::StatusOr<bool> Solve(double* normal, double* right) {
    absl::StatusOr<bool> done = SolveByConjugateGradients(stream_, cols_, normal, right);
    if (!done.ok() || *done) return done;
    done = CudaCholesky(stream_, cols_, normal);
    if (!done.ok() || !*done) return done;
    // To cuBLAS our L is an upper triangle, L^T.
    for (const cublasOperation_t operation : {CUBLAS_OP_T, CUBLAS_OP_N}) {
      absl::Status status =
          ToStatus(cublasDtrsv_64(stream_.blas(), CUBLAS_FILL_MODE_UPPER, operation,
                                  CUBLAS_DIAG_NON_UNIT, cols_, normal, cols_, right, 1),
                   "solving for column scales");
      if (!status.ok()) return status;
    }
    return true;
  }

  CudaStream& stream_;
  const LatticeProblem& problem_;
  const std::vector<double>& spacing_;  // alpha
  const int64_t rows_;
  const int64_t cols_;
  const int32_t* const codes_;  // C x R
  const std::unique_ptr<CodeProducts> products_;
  std::vector<double> energy_;     // R, of the columns last measured
  std::vector<double> agreement_;  // R
  double scale_ = 1.0;             // what Normalize moved from rows to columns since
};

}  // namespace

absl::StatusOr<LatticeScales> CudaFitLatticeScales(CudaStream& stream,
                                                   const LatticeProblem& problem,
                                                   const LatticeCodes& codes,
                                                   const std::vector<double>& spacing) {
  absl::StatusOr<std::unique_ptr<CodeProducts>> products = NewCodeProducts(stream, codes.codes);
  if (!products.ok()) return products.status();
  absl::StatusOr<LatticeScales> scales =
      Fit(stream, problem, codes.codes, spacing, *std::move(products)).Alternate(codes.gamma);
  if (!scales.ok()) return scales.status();
  for (size_t i = 0; i < spacing.size(); ++i) scales->column[i] *= spacing[i];
  return scales;
}

absl::StatusOr<std::vector<double>> CudaFitRowScales(CudaStream& stream,
                                                     const LatticeProblem& problem,
                                                     const DeviceTensor& codes,
                                                     const std::vector<double>& column_scale) {
  absl::StatusOr<std::unique_ptr<CodeProducts>> products = NewCodeProducts(stream, codes);
  if (!products.ok()) return products.status();
  return Fit(stream, problem, codes, column_scale, *std::move(products)).Rows();
}

}  // namespace quantd::compute
