#include "compute/stages/rate_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace quantd::compute {
namespace {

using testing::HasSubstr;

// A layer with a given curve of rates; counts what the search costs.
struct Curve {
  std::function<double(double)> rate;
  double overhead = 0.0;  // of the measured rate over the estimate
  double ceiling = 100.0;
  double at = 0.0;
  int estimates = 0;
  int measures = 0;

  absl::StatusOr<double> Search(const RateSearch& search) {
    return SearchRate(
        search,
        [&](double nominal) -> absl::StatusOr<double> {
          ++estimates;
          at = nominal;
          if (nominal > ceiling) return absl::OutOfRangeError("too fine");
          return rate(nominal);
        },
        [&]() -> absl::StatusOr<double> {
          ++measures;
          return rate(at) + overhead;
        });
  }
};

// Near 0 for coarse spacings, then one bit a bit: the shape of an entropy.
double Entropy(double nominal) { return 0.5 * std::log2(1.0 + std::exp2(2.0 * nominal)) + 0.1; }

RateSearch Request(double bits) {
  return {.requested = bits, .start = bits, .least = -30.0, .largest = 30.0};
}

TEST(RateSearchTest, MeetsTheRequestInAFewSteps) {
  for (const double bits : {0.15, 0.5, 1.0, 2.5, 4.0, 8.0, 16.0}) {
    Curve curve = {.rate = Entropy, .overhead = 0.02};
    const double got = curve.Search(Request(bits)).value();
    EXPECT_NEAR(got, bits, 5e-3);
    EXPECT_DOUBLE_EQ(got, Entropy(curve.at) + 0.02) << "the last solution is the one found";
    EXPECT_LE(curve.estimates, 9) << bits;
    EXPECT_LE(curve.measures, 3) << bits;
  }
}

TEST(RateSearchTest, APoorSlopeOrStartOnlyCostsSteps) {
  for (const double slope : {0.1, 1.0, 4.0}) {
    for (const double start : {-20.0, 0.0, 20.0}) {
      Curve curve = {.rate = Entropy};
      RateSearch search = Request(3.0);
      search.slope = slope;
      search.start = start;
      EXPECT_NEAR(curve.Search(search).value(), 3.0, 5e-3);
      EXPECT_LE(curve.estimates, 30);
    }
  }
}

TEST(RateSearchTest, BacksOffFromSpacingsThatAreTooFine) {
  Curve curve = {.rate = Entropy, .ceiling = 5.0};
  RateSearch search = Request(4.9);
  search.start = 20.0;
  EXPECT_NEAR(curve.Search(search).value(), 4.9, 5e-3);
}

TEST(RateSearchTest, WhatCannotBeMetNamesTheRange) {
  Curve low = {.rate = Entropy};
  const absl::Status below = low.Search(Request(0.05)).status();
  EXPECT_EQ(below.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(below.message(), HasSubstr("0.100 to 30.100 bits a weight"));
  EXPECT_THAT(below.message(), HasSubstr("got 0.050"));

  Curve high = {.rate = Entropy, .ceiling = 5.0};
  const absl::Status above = high.Search(Request(12.0)).status();
  EXPECT_EQ(above.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(above.message(), HasSubstr("0.100 to"));

  Curve flat = {.rate = [](double) { return 0.4; }};
  EXPECT_THAT(flat.Search(Request(2.0)).status().message(), HasSubstr("0.400 to 0.400"));
}

TEST(RateSearchTest, StepsOfTinyLayersAreTakenWithinTheirGranularity) {
  Curve curve = {.rate = [](double nominal) { return std::floor(8.0 * nominal) / 8.0; }};
  RateSearch search = Request(2.05);
  EXPECT_EQ(curve.Search(search).status().code(), absl::StatusCode::kInvalidArgument);
  search.granularity = 0.1;
  EXPECT_DOUBLE_EQ(curve.Search(search).value(), 2.0);
}

TEST(RateSearchTest, OtherErrorsEndTheSearch) {
  const auto rate = []() -> absl::StatusOr<double> { return 1.0; };
  const absl::Status status =
      SearchRate(
          Request(2.0), [](double) -> absl::StatusOr<double> { return absl::CancelledError("x"); },
          rate)
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace quantd::compute
