#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/cpu/host_memory.h"
#include "compute/backend/cpu/worker_pool.h"
#include "compute/backend/gptq_plan.h"

namespace quantd::compute {

// The arranged, damped second moment as K D K^T: K unit lower triangular by units, D the units'
// moments given that every later column is fixed and every earlier one free to adapt.
class GptqMoment {
 public:
  // `moment` is M, C x C. Adds damping * mean diagonal to the diagonal, and one mean diagonal where
  // M_ii = 0: what no calibration token has seen counts like an average input. Where that is not
  // positive definite, damping grows tenfold up to 1.
  // INVALID_ARGUMENT where M is not symmetric, or not positive semidefinite even then;
  // RESOURCE_EXHAUSTED.
  static absl::StatusOr<GptqMoment> Factor(WorkerPool& pool, Stream& stream, const GptqPlan& plan,
                                           absl::Span<const double> moment, double damping);

  int64_t cols() const { return cols_; }
  double damping() const { return damping_; }  // relative, as used
  int64_t retries() const { return retries_; }

  // x = x M^-1 for `rows` rows of x whose columns are arranged. Before Split. In this thread.
  void Solve(int64_t rows, double* x) const;
  // From L of M = L L^T to K and D, in place.
  void Split(WorkerPool& pool, const Stream& stream, const GptqPlan& plan);
  // K[later, unit]: row `position`, first column `unit.begin`; row stride cols(). After Split.
  const double* coupling(int64_t position, const GptqUnit& unit) const {
    return values_.data + position * cols_ + unit.begin;
  }
  // Lower Cholesky factor of the unit's D in the order of its arrangement; row stride cols().
  const double* unit_factor(const GptqUnit& unit) const { return coupling(unit.begin, unit); }

 private:
  int64_t cols_ = 0;
  double damping_ = 0.0;
  int64_t retries_ = 0;
  WritableTensor values_;  // C x C
};

}  // namespace quantd::compute
