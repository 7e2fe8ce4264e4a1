#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/gptq_plan.h"

namespace quantd::compute {

// The arranged, damped second moment as K D K^T, as GptqMoment of the CPU backend has it: K unit
// lower triangular by units, D the units' moments given that every later column is fixed and every
// earlier one free to adapt.
class CudaGptqMoment {
 public:
  // `diagonal` is the moment's, `arranged` the column of each position, on the device. Errors of
  // GptqMoment::Factor.
  static absl::StatusOr<CudaGptqMoment> Factor(CudaStream& stream, const DeviceTensor& moment,
                                               absl::Span<const double> diagonal,
                                               const int* arranged, double damping);

  double damping() const { return damping_; }  // relative, as used
  int64_t retries() const { return retries_; }

  // x = x M^-1 for `rows` rows of x by position. Before Split.
  absl::Status Solve(CudaStream& stream, int64_t rows, double* x) const;
  // From L of M = L L^T to K and D, in place.
  absl::Status Split(CudaStream& stream, const GptqPlan& plan);
  // C x C. After Split: K[later, unit], and the lower Cholesky factor of D on the diagonal.
  const double* values() const { return values_.data(); }

 private:
  int64_t cols_ = 0;
  double damping_ = 0.0;
  int64_t retries_ = 0;
  DeviceBuffer<double> values_;
};

// C += A B, or C = A B: row-major, rows x inner times inner x cols.
enum class ProductInto { kAdd, kReplace };
absl::Status MultiplyRows(CudaStream& stream, int64_t rows, int64_t cols, int64_t inner,
                          const double* a, int64_t lda, const double* b, int64_t ldb,
                          ProductInto into, double* c, int64_t ldc);

}  // namespace quantd::compute
