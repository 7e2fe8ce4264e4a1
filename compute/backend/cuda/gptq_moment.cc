#include "compute/backend/cuda/gptq_moment.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/block_transform.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/gptq_kernels.h"
#include "compute/backend/cuda/matrix_kernels.h"
#include "compute/backend/cuda/moment_factor.h"

namespace quantd::compute {
namespace {

constexpr double kMaxDamping = 1.0;
constexpr double kSmallestRetry = 1e-4;
constexpr double kAsymmetry = 1e-6;  // relative to the geometric mean of the two inputs' energies

absl::Status CheckSymmetric(CudaStream& stream, const DeviceTensor& moment) {
  const int64_t cols = moment.dim(0);
  auto found = DeviceBuffer<unsigned long long>::Allocate(stream, 1);
  if (!found.ok()) return found.status();
  absl::Status status =
      ToStatus(LaunchFindAsymmetry(stream.get(), cols, DeviceData<double>(moment), kAsymmetry,
                                   /*geometric=*/true, found->data()),
               "comparing the second moment with its mirror");
  if (!status.ok()) return status;
  const auto at = CopyToHost(stream, found->data(), 1);
  if (!at.ok()) return at.status();
  const auto index = static_cast<int64_t>(at->front());
  if (index == cols * cols) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("second_moment: expected a symmetric matrix; row ",
                                                 index / cols, " differs from column ",
                                                 index / cols));
}

}  // namespace

absl::Status MultiplyRows(CudaStream& stream, int64_t rows, int64_t cols, int64_t inner,
                          const double* a, int64_t lda, const double* b, int64_t ldb,
                          ProductInto into, double* c, int64_t ldc) {
  const double one = 1.0;
  const double beta = into == ProductInto::kAdd ? 1.0 : 0.0;
  // Columns first, C^T = B^T A^T.
  return ToStatus(
      cublasDgemm(stream.blas(), CUBLAS_OP_N, CUBLAS_OP_N, static_cast<int>(cols),
                  static_cast<int>(rows), static_cast<int>(inner), &one, b, static_cast<int>(ldb),
                  a, static_cast<int>(lda), &beta, c, static_cast<int>(ldc)),
      "product of errors");
}

absl::StatusOr<CudaGptqMoment> CudaGptqMoment::Factor(CudaStream& stream,
                                                      const DeviceTensor& moment,
                                                      absl::Span<const double> diagonal,
                                                      const int* arranged, double damping) {
  if (absl::Status status = CheckSymmetric(stream, moment); !status.ok()) return status;
  CudaGptqMoment result;
  const auto cols = static_cast<int64_t>(diagonal.size());
  result.cols_ = cols;
  double mean = 0.0;
  for (const double value : diagonal) {
    if (value < 0.0) return NotPositive("the matrix");
    mean += value / static_cast<double>(cols);
  }
  if (!(mean > 0.0)) mean = 1.0;
  auto values = DeviceBuffer<double>::Allocate(stream, cols * cols);
  if (!values.ok()) return values.status();
  result.values_ = *std::move(values);
  for (;;) {
    double* const to = result.values_.data();
    absl::Status status =
        ToStatus(LaunchArrangeMoment(stream.get(), cols, DeviceData<double>(moment), arranged,
                                     damping * mean, mean, to),
                 "arranging the second moment");
    if (!status.ok()) return status;
    const absl::StatusOr<bool> definite = CudaCholesky(stream, cols, to);
    if (!definite.ok()) return definite.status();
    if (*definite) break;
    if (damping >= kMaxDamping) return NotPositive("the matrix");
    damping = std::min(std::max(10.0 * damping, kSmallestRetry), kMaxDamping);
    ++result.retries_;
  }
  result.damping_ = damping;
  return result;
}

// Columns first, x is C x rows and the factor is upper: x := L^-T L^-1 x of the transposes.
absl::Status CudaGptqMoment::Solve(CudaStream& stream, int64_t rows, double* x) const {
  const double one = 1.0;
  for (const cublasOperation_t op : {CUBLAS_OP_T, CUBLAS_OP_N}) {
    absl::Status status = ToStatus(
        cublasDtrsm(stream.blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, op,
                    CUBLAS_DIAG_NON_UNIT, static_cast<int>(cols_), static_cast<int>(rows), &one,
                    values_.data(), static_cast<int>(cols_), x, static_cast<int>(cols_)),
        "solving for the target");
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaGptqMoment::Split(CudaStream& stream, const GptqPlan& plan) {
  const int64_t width = plan.units.front().width;
  const bool uniform = std::ranges::all_of(
      plan.units, [width](const GptqUnit& unit) { return unit.width == width; });
  if (width <= kLargestSplit && uniform) {
    return ToStatus(LaunchSplitFactor(stream.get(), cols_, static_cast<int>(width), values_.data()),
                    "splitting the factor");
  }
  const double one = 1.0;
  for (const GptqUnit& unit : plan.units) {
    const int64_t after = unit.begin + unit.width;
    if (after == cols_) continue;
    // Columns first: B is width x later, X = (L^T)^-1 B with L^T upper as it lies.
    absl::Status status =
        ToStatus(cublasDtrsm(stream.blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N,
                             CUBLAS_DIAG_NON_UNIT, static_cast<int>(unit.width),
                             static_cast<int>(cols_ - after), &one,
                             values_.data() + unit.begin * (cols_ + 1), static_cast<int>(cols_),
                             values_.data() + after * cols_ + unit.begin, static_cast<int>(cols_)),
                 "splitting the factor");
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace quantd::compute
