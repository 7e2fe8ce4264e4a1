#include "compute/stages/rate_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace quantd::compute {
namespace {

constexpr int kMaxSteps = 40;
constexpr double kLongestStep = 4.0;  // bits, without a bracket
constexpr double kFinestStep = 1e-9;  // of the nominal rate
// Estimates within this share of the tolerance are measured: they are off by less than the rest.
constexpr double kNear = 0.8;
constexpr double kLeastSlope = 0.02;
constexpr double kLargestSlope = 4.0;

struct Point {
  double nominal;
  double rate;  // measured, or the estimate corrected by what was last measured
};

class Search {
 public:
  Search(const RateSearch& search, absl::FunctionRef<absl::StatusOr<double>(double)> estimate,
         absl::FunctionRef<absl::StatusOr<double>()> measure)
      : search_(search), estimate_(estimate), measure_(measure), slope_(search.slope) {}

  absl::StatusOr<double> Run() {
    double nominal = std::clamp(search_.start, search_.least, search_.largest);
    for (int step = 0; step < kMaxSteps; ++step) {
      absl::StatusOr<std::optional<double>> rate = Try(nominal);
      if (!rate.ok()) return rate.status();
      if (!rate->has_value()) {  // too large to solve at
        ceiling_ = nominal;
        if (!Midpoint(nominal)) break;
        continue;
      }
      if (std::abs(**rate - search_.requested) <= search_.tolerance && measured_) return **rate;
      if (!Next({nominal, **rate}, nominal)) break;
    }
    return Settle();
  }

 private:
  // The rate at `nominal`; unset where it cannot be solved at.
  absl::StatusOr<std::optional<double>> Try(double nominal) {
    const absl::StatusOr<double> estimated = estimate_(nominal);
    if (absl::IsOutOfRange(estimated.status())) return std::optional<double>();
    if (!estimated.ok()) return estimated.status();
    measured_ = false;
    double rate = *estimated + correction_;
    // Near the goal only what is measured counts; it corrects the estimates of further steps.
    if (std::abs(rate - search_.requested) <= kNear * search_.tolerance) {
      const absl::StatusOr<double> exact = measure_();
      if (!exact.ok()) return exact.status();
      if (*exact != rate) {  // earlier points were off by as much
        correction_ = *exact - *estimated;
        last_ = below_ = above_ = nearest_ = std::nullopt;
      }
      rate = *exact;
      measured_ = true;
    }
    return std::optional<double>(rate);
  }

  // Where to go from `at`; false where there is nowhere left.
  bool Next(const Point& at, double& nominal) {
    if (!nearest_.has_value() ||
        std::abs(at.rate - search_.requested) < std::abs(nearest_->rate - search_.requested)) {
      nearest_ = at;
    }
    if (last_.has_value() && std::abs(at.nominal - last_->nominal) > 0.0) {
      slope_ = std::clamp((at.rate - last_->rate) / (at.nominal - last_->nominal), kLeastSlope,
                          kLargestSlope);
    }
    last_ = at;
    (at.rate < search_.requested ? below_ : above_) = at;
    const double step =
        std::clamp((search_.requested - at.rate) / slope_, -kLongestStep, kLongestStep);
    nominal = std::clamp(at.nominal + step, search_.least, search_.largest);
    const bool outside = (below_.has_value() && nominal <= below_->nominal) ||
                         (above_.has_value() && nominal >= above_->nominal) ||
                         (ceiling_.has_value() && nominal >= *ceiling_);
    if (!outside) return nominal != at.nominal;
    return Midpoint(nominal);
  }

  bool Midpoint(double& nominal) const {
    const double low = below_.has_value() ? below_->nominal : search_.least;
    double high = above_.has_value() ? above_->nominal : search_.largest;
    if (ceiling_.has_value()) high = std::min(high, *ceiling_);
    nominal = 0.5 * (low + high);
    return high - low > kFinestStep;
  }

  // No step met the request to the tolerance: the nearest one if it is within the granularity.
  absl::StatusOr<double> Settle() {
    if (nearest_.has_value()) {
      const absl::StatusOr<double> estimated = estimate_(nearest_->nominal);
      if (!estimated.ok()) return estimated.status();
      const absl::StatusOr<double> exact = measure_();
      if (!exact.ok()) return exact.status();
      const double allowed = std::max(search_.tolerance, search_.granularity);
      if (std::abs(*exact - search_.requested) <= allowed) return *exact;
    }
    return Unreachable();
  }

  absl::StatusOr<double> Unreachable() {
    const absl::StatusOr<double> least = At(search_.least);
    if (!least.ok()) return least.status();
    // What is just below the ceiling may fail too; two bits less do not matter in a message.
    double nominal = ceiling_.value_or(search_.largest);
    absl::StatusOr<double> largest = At(nominal);
    while (absl::IsOutOfRange(largest.status()) && nominal > search_.least) {
      nominal = std::max(nominal - 2.0, search_.least);
      largest = At(nominal);
    }
    if (!largest.ok()) return largest.status();
    return absl::InvalidArgumentError(
        absl::StrFormat("rate_bits: expected a rate that this layer can have, %.3f to %.3f bits a "
                        "weight with all that is stored; got %.3f",
                        *least, *largest, search_.requested));
  }

  absl::StatusOr<double> At(double nominal) {
    const absl::StatusOr<double> estimated = estimate_(nominal);
    if (!estimated.ok()) return estimated.status();
    return measure_();
  }

  const RateSearch& search_;
  const absl::FunctionRef<absl::StatusOr<double>(double)> estimate_;
  const absl::FunctionRef<absl::StatusOr<double>()> measure_;
  double slope_;
  double correction_ = 0.0;
  bool measured_ = false;
  std::optional<Point> last_;
  std::optional<Point> nearest_;
  std::optional<Point> below_;  // bracket of the request
  std::optional<Point> above_;
  std::optional<double> ceiling_;  // nominal rate that cannot be solved at
};

}  // namespace

absl::StatusOr<double> SearchRate(const RateSearch& search,
                                  absl::FunctionRef<absl::StatusOr<double>(double)> estimate,
                                  absl::FunctionRef<absl::StatusOr<double>()> measure) {
  return Search(search, estimate, measure).Run();
}

}  // namespace quantd::compute
