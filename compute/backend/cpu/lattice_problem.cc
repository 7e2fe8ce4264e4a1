#include "compute/backend/cpu/lattice_problem.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/cholesky.h"
#include "compute/backend/cpu/host_memory.h"
#include "compute/backend/cpu/matrix_product.h"
#include "compute/backend/cpu/successive_cancellation.h"

namespace quantd::compute {
namespace {

constexpr int64_t kTileRows = 128;
constexpr double kMaxAsymmetry = 1e-6;  // of the diagonal entries that an entry belongs to

absl::Status CheckSymmetric(int64_t n, const double* m) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      const double scale = std::max(std::abs(m[i * n + i]), std::abs(m[j * n + j]));
      if (std::abs(m[i * n + j] - m[j * n + i]) <= kMaxAsymmetry * scale) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("second_moment: expected a symmetric matrix; got ", m[i * n + j], " at (", i,
                       ", ", j, ") and ", m[j * n + i], " across the diagonal"));
    }
  }
  return absl::OkStatus();
}

// to[c * rows + r] = from[r * cols + c] for rows [begin, end), in squares that fit the cache.
void TransposeRows(int64_t begin, int64_t end, int64_t rows, int64_t cols, const double* from,
                   double* to) {
  constexpr int64_t kSquare = 16;
  for (int64_t c = 0; c < cols; c += kSquare) {
    for (int64_t r = begin; r < end; r += kSquare) {
      for (int64_t i = c; i < std::min(c + kSquare, cols); ++i) {
        for (int64_t j = r; j < std::min(r + kSquare, end); ++j) {
          to[i * rows + j] = from[j * cols + i];
        }
      }
    }
  }
}

// W Mx + residual for rows [begin, end), row-major, and tr(W M W^T) of these rows.
double CorrelateRows(const LatticeInputs& inputs, int64_t begin, int64_t end,
                     std::vector<double>& product) {
  const int64_t cols = inputs.weight.dim(1);
  const int64_t count = (end - begin) * cols;
  const double* weight = Doubles(inputs.weight) + begin * cols;
  product.resize(count);
  Multiply(end - begin, cols, cols, weight, cols, Doubles(inputs.moment), cols, product.data(),
           cols);
  const double energy = std::inner_product(weight, weight + count, product.data(), 0.0);
  if (!inputs.cross.empty()) {
    Multiply(end - begin, cols, cols, weight, cols, Doubles(inputs.cross), cols, product.data(),
             cols);
  }
  if (!inputs.residual.empty()) {
    const double* residual = Doubles(inputs.residual) + begin * cols;
    for (int64_t i = 0; i < count; ++i) product[i] += residual[i];
  }
  return energy;
}

}  // namespace

absl::StatusOr<DeviceTensor> CpuSubmatrix(WorkerPool& pool, Stream& stream,
                                          const DeviceTensor& matrix,
                                          absl::Span<const int64_t> rows,
                                          absl::Span<const int64_t> columns) {
  if (rows.empty() && columns.empty()) return matrix;
  const int64_t from_cols = matrix.dim(1);
  const int64_t to_rows = rows.empty() ? matrix.dim(0) : static_cast<int64_t>(rows.size());
  const int64_t to_cols = columns.empty() ? from_cols : static_cast<int64_t>(columns.size());
  absl::StatusOr<WritableTensor> to = NewMatrix(stream, {to_rows, to_cols});
  if (!to.ok()) return to.status();
  pool.ParallelFor(0, to_rows, kTileRows, [&](int64_t b, int64_t e) {
    for (int64_t r = b; r < e; ++r) {
      const double* from = Doubles(matrix) + (rows.empty() ? r : rows[r]) * from_cols;
      double* row = to->data + r * to_cols;
      if (columns.empty()) {
        std::copy_n(from, to_cols, row);
      } else {
        for (int64_t c = 0; c < to_cols; ++c) row[c] = from[columns[c]];
      }
    }
  });
  return to->tensor;
}

absl::StatusOr<std::vector<double>> CpuColumnEnergies(WorkerPool& pool, Stream& stream,
                                                      const DeviceTensor& matrix) {
  const int64_t rows = matrix.dim(0);
  const int64_t cols = matrix.dim(1);
  const double* values = Doubles(matrix);
  std::vector<double> energies(cols);
  pool.ParallelFor(0, cols, 64, [&](int64_t b, int64_t e) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = b; c < e; ++c) energies[c] += values[r * cols + c] * values[r * cols + c];
    }
    for (int64_t c = b; c < e; ++c) energies[c] /= static_cast<double>(rows);
  });
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  return energies;
}

absl::StatusOr<std::vector<double>> CpuRowEnergies(WorkerPool& pool, Stream& stream,
                                                   const DeviceTensor& matrix) {
  const int64_t cols = matrix.dim(1);
  const double* values = Doubles(matrix);
  std::vector<double> energies(matrix.dim(0));
  pool.ParallelFor(0, matrix.dim(0), 64, [&](int64_t b, int64_t e) {
    for (int64_t r = b; r < e; ++r) {
      const double* row = values + r * cols;
      energies[r] = std::inner_product(row, row + cols, row, 0.0) / static_cast<double>(cols);
    }
  });
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  return energies;
}

absl::StatusOr<MomentFactor> CpuFactorMoment(WorkerPool& pool, Stream& stream,
                                             const DeviceTensor& moment, double added) {
  const int64_t cols = moment.dim(0);
  if (absl::Status status = CheckSymmetric(cols, Doubles(moment)); !status.ok()) return status;
  absl::StatusOr<WritableTensor> lower = NewMatrix(stream, {cols, cols});
  if (!lower.ok()) return lower.status();
  std::copy_n(Doubles(moment), cols * cols, lower->data);
  for (int64_t i = 0; i < cols; ++i) lower->data[i * cols + i] += added;
  const bool is_definite = FactorCholesky(pool, cols, lower->data, &stream);
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  if (!is_definite) {
    return absl::FailedPreconditionError(
        absl::StrCat("second_moment: not positive definite with ", added, " on its diagonal"));
  }
  MomentFactor factor = {.lower = lower->tensor, .diagonal = {}, .added = added};
  factor.diagonal.reserve(cols);
  for (int64_t i = 0; i < cols; ++i) factor.diagonal.push_back(lower->data[i * cols + i]);
  return factor;
}

absl::StatusOr<LatticeProblem> CpuPrepareLattice(WorkerPool& pool, Stream& stream,
                                                 const LatticeInputs& inputs) {
  const int64_t rows = inputs.weight.dim(0);
  const int64_t cols = inputs.weight.dim(1);
  absl::StatusOr<WritableTensor> correlation = NewMatrix(stream, {cols, rows});
  if (!correlation.ok()) return correlation.status();
  absl::StatusOr<WritableTensor> target = NewMatrix(stream, {cols, rows});
  if (!target.ok()) return target.status();
  const double* weight = Doubles(inputs.weight);
  const double* lower = Doubles(inputs.factor.lower);
  std::vector<double> energies((rows + kTileRows - 1) / kTileRows);
  pool.ParallelFor(0, rows, kTileRows, [&](int64_t b, int64_t e) {
    if (!stream.CheckCancelled().ok()) return;
    std::vector<double> product;
    energies[b / kTileRows] = CorrelateRows(inputs, b, e, product);
    TransposeRows(0, e - b, rows, cols, product.data(), correlation->data + b);
    for (int64_t i = 0; i < (e - b) * cols; ++i) {
      product[i] += inputs.factor.added * weight[b * cols + i];
    }
    TransposeRows(0, e - b, rows, cols, product.data(), target->data + b);
    SolveLower(cols, e - b, lower, cols, target->data + b, rows);
  });
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  return LatticeProblem{.moment_hat = inputs.moment_hat.empty() ? inputs.moment : inputs.moment_hat,
                        .correlation = correlation->tensor,
                        .target = target->tensor,
                        .energy = std::accumulate(energies.begin(), energies.end(), 0.0)};
}

absl::StatusOr<LatticeCodes> CpuCancelSuccessively(WorkerPool& pool, Stream& stream,
                                                   const MomentFactor& factor,
                                                   const DeviceTensor& target, double spacing) {
  const int64_t cols = target.dim(0);
  const int64_t rows = target.dim(1);
  absl::StatusOr<Tensor> codes = Tensor::Create(DType::kI32, {cols, rows});
  if (!codes.ok()) return codes.status();
  absl::StatusOr<WritableTensor> left = NewMatrix(stream, {cols, rows});
  if (!left.ok()) return left.status();
  const double* from = Doubles(target);
  pool.ParallelFor(0, cols, 64, [&](int64_t b, int64_t e) {
    std::copy(from + b * rows, from + e * rows, left->data + b * rows);
  });
  std::vector<double> gamma(cols);
  const bool fits = CancelSuccessively(pool, rows, cols, Doubles(factor.lower), spacing, left->data,
                                       codes->as<int32_t>().data(), gamma.data(), &stream);
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  if (!fits) {
    return absl::OutOfRangeError(
        absl::StrCat("spacing ", spacing, ": expected codes within +-2^30; got larger ones"));
  }
  return LatticeCodes{.codes = Adopt(stream, *std::move(codes)), .gamma = std::move(gamma)};
}

absl::StatusOr<DeviceTensor> CpuDecodeLattice(WorkerPool& pool, Stream& stream,
                                              const DeviceTensor& codes,
                                              const std::vector<double>& row_scale,
                                              const std::vector<double>& column_scale,
                                              absl::Span<const int64_t> columns, int64_t cols) {
  const int64_t live = codes.dim(0);
  const int64_t rows = codes.dim(1);
  absl::StatusOr<WritableTensor> to = NewMatrix(stream, {rows, cols});
  if (!to.ok()) return to.status();
  const int32_t* z = HostTensor(codes).as<int32_t>().data();
  pool.ParallelFor(0, rows, 16, [&](int64_t b, int64_t e) {
    std::fill(to->data + b * cols, to->data + e * cols, 0.0);
    for (int64_t i = 0; i < live; ++i) {
      const int64_t c = columns.empty() ? i : columns[i];
      for (int64_t r = b; r < e; ++r) {
        to->data[r * cols + c] = row_scale[r] * column_scale[i] * z[i * rows + r];
      }
    }
  });
  return to->tensor;
}

}  // namespace quantd::compute
