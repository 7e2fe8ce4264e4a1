#include "compute/backend/cpu/gptq_moment.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/block_transform.h"
#include "compute/backend/cpu/cholesky.h"
#include "compute/backend/cpu/matrix_product.h"

namespace quantd::compute {
namespace {

constexpr int64_t kRowGrain = 64;
constexpr double kMaxDamping = 1.0;
constexpr double kSmallestRetry = 1e-4;
constexpr double kAsymmetry = 1e-6;  // relative to the geometric mean of the two inputs' energies

// The first row with an entry that its mirror contradicts, or -1.
int64_t FindAsymmetry(WorkerPool& pool, int64_t cols, absl::Span<const double> moment) {
  std::vector<int64_t> found((cols + kRowGrain - 1) / kRowGrain, -1);
  pool.ParallelFor(0, cols, kRowGrain, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        const double value = moment[i * cols + j];
        const double mirror = moment[j * cols + i];
        const double scale = std::sqrt(std::abs(moment[i * cols + i] * moment[j * cols + j]));
        // Written so that NaN counts.
        if (std::abs(value - mirror) <= kAsymmetry * std::max(scale, std::abs(value))) continue;
        found[b / kRowGrain] = i;
        return;
      }
    }
  });
  for (const int64_t row : found) {
    if (row >= 0) return row;
  }
  return -1;
}

}  // namespace

absl::StatusOr<GptqMoment> GptqMoment::Factor(WorkerPool& pool, Stream& stream,
                                              const GptqPlan& plan, absl::Span<const double> moment,
                                              double damping) {
  GptqMoment result;
  const auto cols = static_cast<int64_t>(plan.arranged.size());
  result.cols_ = cols;
  if (const int64_t row = FindAsymmetry(pool, cols, moment); row >= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "second_moment: expected a symmetric matrix; row ", row, " differs from column ", row));
  }
  double mean = 0.0;
  for (int64_t i = 0; i < cols; ++i) {
    if (moment[i * cols + i] < 0.0) return NotPositive("the matrix");
    mean += moment[i * cols + i] / static_cast<double>(cols);
  }
  if (!(mean > 0.0)) mean = 1.0;
  absl::StatusOr<WritableTensor> values = NewMatrix(stream, {cols, cols});
  if (!values.ok()) return values.status();
  result.values_ = *std::move(values);
  for (;;) {
    double* to = result.values_.data;
    pool.ParallelFor(0, cols, kRowGrain, [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) {
        const double* row = moment.data() + plan.arranged[i] * cols;
        for (int64_t j = 0; j <= i; ++j) to[i * cols + j] = row[plan.arranged[j]];
        const double dead = to[i * cols + i] == 0.0 ? mean : 0.0;
        to[i * cols + i] += damping * mean + dead;
      }
    });
    if (FactorCholesky(pool, cols, to, &stream)) break;
    if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
    if (damping >= kMaxDamping) return NotPositive("the matrix");
    damping = std::min(std::max(10.0 * damping, kSmallestRetry), kMaxDamping);
    ++result.retries_;
  }
  result.damping_ = damping;
  return result;
}

void GptqMoment::Solve(int64_t rows, double* x) const {
  SolveLowerTransposedRight(rows, cols_, values_.data, cols_, x, cols_);
  SolveLowerRight(rows, cols_, values_.data, cols_, x, cols_);
}

void GptqMoment::Split(WorkerPool& pool, const Stream& stream, const GptqPlan& plan) {
  pool.ParallelFor(0, static_cast<int64_t>(plan.units.size()), 1, [&](int64_t g, int64_t) {
    if (!stream.CheckCancelled().ok()) return;
    const GptqUnit& unit = plan.units[g];
    const int64_t after = unit.begin + unit.width;
    SolveLowerRight(cols_ - after, unit.width, unit_factor(unit), cols_,
                    values_.data + after * cols_ + unit.begin, cols_);
  });
}

}  // namespace quantd::compute
