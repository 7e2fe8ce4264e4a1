#include "compute/stages/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "compute/stages/measure.h"

namespace quantd::compute {
namespace {

TEST(ErrorReportTest, UnsetFiguresAreNull) {
  const nlohmann::json json = nlohmann::json::parse(ToJson(ErrorReport{}));
  for (const char* field :
       {"relative_output_error_weight_only", "relative_output_error_weight_and_activation",
        "sqnr_db_weight_only", "sqnr_db_weight_and_activation", "weight_only_measured_on",
        "baseline_identity_rtn_relative_output_error_weight_only",
        "baseline_hadamard_rtn_gain_weight_and_activation", "predicted_loss", "tokens",
        "statistic_digest", "recipe"}) {
    ASSERT_TRUE(json.contains(field)) << field;
    EXPECT_TRUE(json.at(field).is_null()) << field;
  }
  EXPECT_EQ(json.at("outcome"), "EXACT");
}

TEST(ErrorReportTest, FiguresKeepTheirNamesAndBits) {
  ErrorReport report;
  report.layer = "model.layers.0";
  report.rows = 3;
  report.cols = 64;
  report.recipe_json = R"({"format":"mxfp4"})";
  report.relative_output_error_weight_only = 0.1;
  report.baseline_hadamard_rtn.relative_output_error_weight_and_activation = 1.0 / 3.0;
  report.baseline_identity_rtn.gain_weight_only = 2.5;
  report.worst_rows = {{.index = 2, .share = 0.75}};
  report.outcome = Outcome::kDamped;
  report.tokens = 4096;
  report.seconds["transform"] = 0.25;
  report.tensor_digests["weight_packed"] = "ab";
  const nlohmann::json json = nlohmann::json::parse(ToJson(report));
  EXPECT_EQ(json.at("layer"), "model.layers.0");
  EXPECT_EQ(json.at("recipe").at("format"), "mxfp4");
  EXPECT_EQ(json.at("relative_output_error_weight_only"), 0.1);
  EXPECT_EQ(json.at("baseline_hadamard_rtn_relative_output_error_weight_and_activation"),
            1.0 / 3.0);
  EXPECT_EQ(json.at("baseline_identity_rtn_gain_weight_only"), 2.5);
  EXPECT_EQ(json.at("worst_rows").at(0).at("index"), 2);
  EXPECT_EQ(json.at("worst_rows").at(0).at("share"), 0.75);
  EXPECT_EQ(json.at("outcome"), "DAMPED");
  EXPECT_EQ(json.at("tokens"), 4096);
  EXPECT_EQ(json.at("seconds").at("transform"), 0.25);
  EXPECT_EQ(json.at("tensor_digests").at("weight_packed"), "ab");
}

TEST(ErrorReportTest, NeverWritesWhatJsonCannotHold) {
  ErrorReport report;
  report.layer = "bad \xff name";
  report.predicted_loss = std::numeric_limits<double>::quiet_NaN();
  report.transform_condition_max = HUGE_VAL;
  const nlohmann::json json = nlohmann::json::parse(ToJson(report));
  EXPECT_TRUE(json.at("predicted_loss").is_null());
  EXPECT_TRUE(json.at("transform_condition_max").is_null());
}

// E[eta^2] by integrating over xi and xi' numerically.
TEST(ExpectedSquaredEtaTest, EqualsTheIntegral) {
  for (const auto& [element, scale] : {std::pair(1, 0), std::pair(1, 3), std::pair(3, 23)}) {
    constexpr int kSteps = 400;
    double sum = 0.0;
    for (int i = 0; i < kSteps; ++i) {
      for (int j = 0; j < kSteps; ++j) {
        const double xi = (i + 0.5) / kSteps - 0.5;
        const double xi2 = (j + 0.5) / kSteps - 0.5;
        const double eta = (1 + std::log(2.0) * std::exp2(-element) * xi) *
                               (1 + std::log(2.0) * std::exp2(-scale) * xi2) -
                           1;
        sum += eta * eta;
      }
    }
    EXPECT_NEAR(ExpectedSquaredEta(element, scale), sum / kSteps / kSteps, 1e-6);
  }
}

}  // namespace
}  // namespace quantd::compute
