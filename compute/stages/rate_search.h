#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace quantd::compute {

// Finds the nominal rate at which a rate that grows with it meets a request.
struct RateSearch {
  double requested = 0.0;   // bits a weight
  double tolerance = 5e-3;  // of the measured rate
  // Where the measured rate moves in steps that jump over the request (tiny layers), the nearest
  // step is taken if it is within this.
  double granularity = 0.0;
  double start = 0.0;  // nominal rate to begin with
  double slope = 1.0;  // of the measured over the nominal rate there: the Newton step
  double least = 0.0;  // bounds of the nominal rate
  double largest = 0.0;
};

// `estimate` solves at a nominal rate and returns about what `measure` will return for the same
// solution, which may cost more. Newton, then secant steps kept within the bracket. On success the
// last solution is the one found and the result its measured rate. INVALID_ARGUMENT, naming the
// reachable range, where the request cannot be met; errors of the two are returned as they are, but
// OUT_OF_RANGE from `estimate` only says that the nominal rate is too large.
absl::StatusOr<double> SearchRate(const RateSearch& search,
                                  absl::FunctionRef<absl::StatusOr<double>(double)> estimate,
                                  absl::FunctionRef<absl::StatusOr<double>()> measure);

}  // namespace quantd::compute
