#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

// How many bits each weight of a model gets when all of them together may spend a given number.
//
//   minimize  sum_i n_i e_i(b_i)   subject to   sum_i n_i b_i <= B sum_i n_i
//
// with n_i the parameters of weight i, b_i its bits a parameter and e_i its measured relative
// output error: reverse water-filling across weights (Cover and Thomas, section 10.3.3; for
// quantizers Shoham and Gersho 1988). At the optimum every weight that is at no end of its range
// has the same slope -de_i/db_i: the last bit buys the same everywhere.
namespace quantd::compute {

// One measured way to store a weight.
struct RatePoint {
  double bits = 0;   // a parameter, everything stored included; finite, >= 0
  double error = 0;  // relative output error of the quantized weight; finite, >= 0
  int option = 0;    // the same number for the same recipe in every weight
};

// A weight, or weights that share a recipe (a fusion group, with their means).
struct RateCurve {
  double parameters = 0;          // > 0
  std::vector<RatePoint> points;  // at least one, in any order
  // Whether every rate between the points may be asked for as well. The error between two of them
  // is then interpolated in its logarithm, which for a good code falls by 2 ln 2 a bit.
  bool continuous = false;
};

// What one weight gets: between the points `low` and `high` of its curve, at `fraction` of the way
// in bits; low == high and fraction 0 for a measured point.
struct RateChoice {
  size_t low = 0;
  size_t high = 0;
  double fraction = 0;
  double bits = 0;
  double error = 0;  // predicted
};

struct Allocation {
  std::vector<RateChoice> choices;  // one a curve
  double bits = 0;                  // mean over all parameters
  double error = 0;                 // mean over all parameters
};

struct RatePlan {
  Allocation best;
  // What the same budget buys without a plan: one option for every weight, or one rate for every
  // continuous one, the best that fits. Unset where none fits.
  std::optional<Allocation> uniform;
  // -de/db at the optimum: by how much the mean error would fall per further mean bit. 0 where the
  // budget buys everything that helps.
  double slope = 0;
  // No choice of measured points and rates between them that fits has a mean error below this.
  double error_bound = 0;
};

// The mean bits that the curves can spend, from the cheapest to the dearest points.
struct RateRange {
  double least = 0;
  double most = 0;
};
RateRange ReachableRates(absl::Span<const RateCurve> curves);

// Solves the problem above on the lower convex hulls of the curves (of the logarithms where they
// are continuous): exactly for continuous curves. Of the others, steps along the hulls are taken in
// the order of their slopes while they fit, so that the result misses the bound by less than one
// step. Never worse than `uniform`, never above the budget, and never worse for a larger one where
// all curves are of one kind.
// INVALID_ARGUMENT: no curves, a curve without points, numbers out of the ranges above;
// OUT_OF_RANGE: a budget outside ReachableRates, which the message names.
absl::StatusOr<RatePlan> AllocateRates(absl::Span<const RateCurve> curves, double budget_bits);

}  // namespace quantd::compute
