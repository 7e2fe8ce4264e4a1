#include "compute/pipeline/allocate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace quantd::compute {
namespace {

// Stands for an error of zero where logarithms are taken: far below what rounding leaves.
constexpr double kLeastError = 1e-30;
// Relative: a budget that equals what the points spend must not miss it by rounding.
constexpr double kTolerance = 1e-12;
constexpr double kChordTolerance = 1e-9;

struct Knot {
  size_t point;
  double bits;
  double error;
  double height;  // what is convex along the hull: the error, or its logarithm
};

// The lower convex hull of one curve, as far as it falls. Slopes decrease along it.
struct Hull {
  double parameters;
  bool continuous;
  std::vector<Knot> knots;

  double StepSlope(size_t k) const {
    return (knots[k].height - knots[k + 1].height) / (knots[k + 1].bits - knots[k].bits);
  }
};

absl::Status CheckCurve(const RateCurve& curve, size_t index) {
  if (!(curve.parameters > 0) || !std::isfinite(curve.parameters)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "weight %d: expected more than 0 parameters, got %g", index, curve.parameters));
  }
  if (curve.points.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("weight %d: expected at least one measured point, got none", index));
  }
  for (const RatePoint& point : curve.points) {
    if (!(point.bits >= 0 && point.error >= 0) || !std::isfinite(point.bits + point.error)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("weight %d: expected finite bits and error of at least 0, got %g bits "
                          "and an error of %g",
                          index, point.bits, point.error));
    }
  }
  return absl::OkStatus();
}

Hull HullOf(const RateCurve& curve) {
  std::vector<size_t> order(curve.points.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const RatePoint& p = curve.points[a];
    const RatePoint& q = curve.points[b];
    return std::tie(p.bits, p.error, a) < std::tie(q.bits, q.error, b);
  });
  Hull hull{curve.parameters, curve.continuous, {}};
  std::vector<Knot>& knots = hull.knots;
  for (const size_t index : order) {
    const RatePoint& point = curve.points[index];
    const double height =
        curve.continuous ? std::log(std::max(point.error, kLeastError)) : point.error;
    // More bits for no less error buy nothing.
    if (!knots.empty() && height >= knots.back().height) continue;
    const Knot next{index, point.bits, point.error, height};
    while (knots.size() >= 2) {
      const Knot& a = knots[knots.size() - 2];
      const Knot& b = knots.back();
      const double left = (a.height - b.height) * (next.bits - b.bits);
      const double right = (b.height - next.height) * (b.bits - a.bits);
      // On the chord up to rounding: a measured rate is kept where rates between are to be had.
      if (left > (curve.continuous ? right * (1 - kChordTolerance) : right)) break;
      knots.pop_back();
    }
    knots.push_back(next);
  }
  return hull;
}

RateChoice AtKnot(const Hull& hull, size_t k) {
  const Knot& knot = hull.knots[k];
  return {knot.point, knot.point, 0.0, knot.bits, knot.error};
}

RateChoice Between(const Hull& hull, size_t k, double bits) {
  const Knot& low = hull.knots[k];
  const Knot& high = hull.knots[k + 1];
  const double fraction = std::clamp((bits - low.bits) / (high.bits - low.bits), 0.0, 1.0);
  if (fraction == 0) return AtKnot(hull, k);
  if (fraction == 1) return AtKnot(hull, k + 1);
  return {low.point, high.point, fraction, bits,
          std::exp(low.height + fraction * (high.height - low.height))};
}

// Where e(b) + slope b is least on a continuous hull. Along a segment e falls as exp(-s b), so its
// slope is s e(b).
RateChoice AtSlope(const Hull& hull, double slope) {
  for (size_t k = 0; k + 1 < hull.knots.size(); ++k) {
    const double s = hull.StepSlope(k);
    const double height = std::log(slope / s);  // of the error at which the slope is met
    if (height >= hull.knots[k].height) return AtKnot(hull, k);
    if (height <= hull.knots[k + 1].height) continue;
    return Between(hull, k, hull.knots[k].bits + (hull.knots[k].height - height) / s);
  }
  return AtKnot(hull, hull.knots.size() - 1);
}

// Largest and smallest slope of any continuous hull.
struct SlopeRange {
  double least = std::numeric_limits<double>::infinity();
  double most = 0;
};
SlopeRange SlopesOf(const std::vector<Hull>& hulls) {
  SlopeRange range;
  for (const Hull& hull : hulls) {
    for (size_t k = 0; hull.continuous && k + 1 < hull.knots.size(); ++k) {
      const double s = hull.StepSlope(k);
      range.most = std::max(range.most, s * std::exp(hull.knots[k].height));
      range.least = std::min(range.least, s * std::exp(hull.knots[k + 1].height));
    }
  }
  return range;
}

double ContinuousBits(const std::vector<Hull>& hulls, double slope) {
  double bits = 0;
  for (const Hull& hull : hulls) {
    if (hull.continuous) bits += hull.parameters * AtSlope(hull, slope).bits;
  }
  return bits;
}

double LeastContinuousBits(const std::vector<Hull>& hulls) {
  return ContinuousBits(hulls, std::numeric_limits<double>::infinity());
}

// The smallest slope at which the continuous curves spend at most `bits` (parameters times bits).
// Spending is continuous and does not grow with the slope; it is bisected in the logarithm.
double SlopeThatSpends(const std::vector<Hull>& hulls, double bits) {
  const SlopeRange range = SlopesOf(hulls);
  if (range.most == 0) return 0;  // no curve has a choice
  if (ContinuousBits(hulls, range.least) <= bits) return range.least;
  double low = std::log(range.least);
  double high = std::log(range.most);
  for (int i = 0; i < 200 && high - low > 1e-15 * std::abs(high); ++i) {
    const double middle = 0.5 * (low + high);
    (ContinuousBits(hulls, std::exp(middle)) <= bits ? high : low) = middle;
  }
  return std::exp(high);
}

struct Step {
  size_t curve;
  size_t knot;  // from this one to the next
  double slope;
  double bits;  // parameters times bits
};

std::vector<Step> StepsBySlope(const std::vector<Hull>& hulls) {
  std::vector<Step> steps;
  for (size_t i = 0; i < hulls.size(); ++i) {
    if (hulls[i].continuous) continue;
    for (size_t k = 0; k + 1 < hulls[i].knots.size(); ++k) {
      const double width = hulls[i].knots[k + 1].bits - hulls[i].knots[k].bits;
      steps.push_back({i, k, hulls[i].StepSlope(k), hulls[i].parameters * width});
    }
  }
  // Steps of one curve stay in order: their slopes fall strictly along its hull.
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.slope > b.slope; });
  return steps;
}

Allocation MeansOf(const std::vector<Hull>& hulls, std::vector<RateChoice> choices) {
  Allocation allocation;
  double parameters = 0;
  for (size_t i = 0; i < hulls.size(); ++i) {
    parameters += hulls[i].parameters;
    allocation.bits += hulls[i].parameters * choices[i].bits;
    allocation.error += hulls[i].parameters * choices[i].error;
  }
  allocation.bits /= parameters;
  allocation.error /= parameters;
  allocation.choices = std::move(choices);
  return allocation;
}

struct Solution {
  Allocation allocation;
  double slope = 0;
};

// `budget`: parameters times bits. Discrete steps first, each only if what the continuous curves
// would spend at its slope is left for them; they then take the rest.
Solution SolveOnHulls(const std::vector<Hull>& hulls, double budget) {
  std::vector<size_t> knot(hulls.size(), 0);
  std::vector<bool> stopped(hulls.size(), false);
  double spent = 0;
  for (const Hull& hull : hulls) {
    if (!hull.continuous) spent += hull.parameters * hull.knots[0].bits;
  }
  const double least_continuous = LeastContinuousBits(hulls);
  const double slack = kTolerance * budget;
  double first_refused = 0;
  for (const Step& step : StepsBySlope(hulls)) {
    if (stopped[step.curve]) continue;
    const double others = std::max(ContinuousBits(hulls, step.slope), least_continuous);
    if (spent + step.bits + others > budget + slack) {
      stopped[step.curve] = true;
      first_refused = std::max(first_refused, step.slope);
      continue;
    }
    spent += step.bits;
    knot[step.curve] = step.knot + 1;
  }

  const double left = budget - spent;
  const double continuous_slope = SlopeThatSpends(hulls, left + slack);
  const bool continuous_full = continuous_slope <= SlopesOf(hulls).least;
  std::vector<RateChoice> choices;
  for (size_t i = 0; i < hulls.size(); ++i) {
    choices.push_back(hulls[i].continuous ? AtSlope(hulls[i], continuous_slope)
                                          : AtKnot(hulls[i], knot[i]));
  }
  Solution solution;
  solution.allocation = MeansOf(hulls, std::move(choices));
  const bool spends_rest = continuous_slope > 0 && !continuous_full;
  solution.slope = spends_rest ? continuous_slope : first_refused;
  return solution;
}

// The Lagrangian's minimum at a slope: no allocation within the budget has less error, whatever
// the slope is.
double ErrorBound(const std::vector<Hull>& hulls, double budget, double slope) {
  double bound = 0;
  double parameters = 0;
  for (const Hull& hull : hulls) {
    double least = std::numeric_limits<double>::infinity();
    if (hull.continuous) {
      const RateChoice choice =
          slope > 0 ? AtSlope(hull, slope) : AtKnot(hull, hull.knots.size() - 1);
      least = choice.error + slope * choice.bits;
    } else {
      for (const Knot& knot : hull.knots) least = std::min(least, knot.error + slope * knot.bits);
    }
    bound += hull.parameters * least;
    parameters += hull.parameters;
  }
  return std::max((bound - slope * budget) / parameters, 0.0);
}

// Every continuous curve at one rate, or at its end where that is below the rate.
std::optional<std::vector<RateChoice>> AtRate(const std::vector<Hull>& hulls, double bits) {
  std::vector<RateChoice> choices;
  for (const Hull& hull : hulls) {
    const std::vector<Knot>& knots = hull.knots;
    if (knots.front().bits > bits * (1 + kTolerance)) return std::nullopt;
    size_t k = 0;
    while (k + 1 < knots.size() && knots[k + 1].bits <= bits) ++k;
    choices.push_back(k + 1 == knots.size() ? AtKnot(hull, k) : Between(hull, k, bits));
  }
  return choices;
}

// One option for every weight, for each option that all of them have.
std::optional<Allocation> BestSingleOption(absl::Span<const RateCurve> curves,
                                           const std::vector<Hull>& hulls, double budget_bits) {
  std::map<int, std::vector<RateChoice>> by_option;
  for (const RateCurve& curve : curves) {
    for (size_t p = 0; p < curve.points.size(); ++p) {
      const RatePoint& point = curve.points[p];
      std::vector<RateChoice>& choices = by_option[point.option];
      const size_t done = static_cast<size_t>(&curve - curves.data());
      if (choices.size() != done) continue;  // an earlier weight lacks it, or it comes twice
      choices.push_back({p, p, 0.0, point.bits, point.error});
    }
  }
  std::optional<Allocation> best;
  for (auto& [option, choices] : by_option) {
    if (choices.size() != curves.size()) continue;
    Allocation allocation = MeansOf(hulls, std::move(choices));
    if (allocation.bits > budget_bits * (1 + kTolerance)) continue;
    if (!best.has_value() || allocation.error < best->error) best = std::move(allocation);
  }
  return best;
}

std::optional<Allocation> BestUniform(absl::Span<const RateCurve> curves,
                                      const std::vector<Hull>& hulls, double budget_bits) {
  std::optional<Allocation> best = BestSingleOption(curves, hulls, budget_bits);
  const bool continuous =
      std::all_of(curves.begin(), curves.end(), [](const auto& c) { return c.continuous; });
  if (!continuous) return best;
  if (auto choices = AtRate(hulls, budget_bits); choices.has_value()) {
    Allocation allocation = MeansOf(hulls, *std::move(choices));
    if (!best.has_value() || allocation.error < best->error) best = std::move(allocation);
  }
  return best;
}

}  // namespace

RateRange ReachableRates(absl::Span<const RateCurve> curves) {
  RateRange range;
  double parameters = 0;
  for (const RateCurve& curve : curves) {
    const auto [least, most] =
        std::minmax_element(curve.points.begin(), curve.points.end(),
                            [](const auto& a, const auto& b) { return a.bits < b.bits; });
    if (least == curve.points.end()) continue;
    range.least += curve.parameters * least->bits;
    range.most += curve.parameters * most->bits;
    parameters += curve.parameters;
  }
  if (parameters > 0) {
    range.least /= parameters;
    range.most /= parameters;
  }
  return range;
}

absl::StatusOr<RatePlan> AllocateRates(absl::Span<const RateCurve> curves, double budget_bits) {
  if (curves.empty()) {
    return absl::InvalidArgumentError("expected at least one weight to plan for, got none");
  }
  for (size_t i = 0; i < curves.size(); ++i) {
    if (absl::Status s = CheckCurve(curves[i], i); !s.ok()) return s;
  }
  const RateRange range = ReachableRates(curves);
  if (!(budget_bits >= range.least * (1 - kTolerance) &&
        budget_bits <= range.most * (1 + kTolerance))) {
    return absl::OutOfRangeError(
        absl::StrFormat("bits_per_weight: expected %.4f..%.4f, what the measured candidates reach, "
                        "got %g",
                        range.least, range.most, budget_bits));
  }
  std::vector<Hull> hulls;
  double parameters = 0;
  for (const RateCurve& curve : curves) {
    hulls.push_back(HullOf(curve));
    parameters += curve.parameters;
  }
  Solution solution = SolveOnHulls(hulls, budget_bits * parameters);
  RatePlan plan;
  plan.slope = solution.slope;
  plan.error_bound = ErrorBound(hulls, budget_bits * parameters, solution.slope);
  plan.uniform = BestUniform(curves, hulls, budget_bits);
  // Only where steps are discrete, and few and large ones did not fit.
  const bool uniform_is_better =
      plan.uniform.has_value() && plan.uniform->error < solution.allocation.error;
  plan.best = uniform_is_better ? *plan.uniform : std::move(solution.allocation);
  return plan;
}

}  // namespace quantd::compute
