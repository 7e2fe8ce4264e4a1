#include "client/cli/plan_text.h"

#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quantd::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

client::Plan TwoLayers() {
  client::Plan plan;
  plan.layers = {{.layer = "tenants/t/jobs/j/layers/a",
                  .candidate = "",
                  .parameters = 300,
                  .recipe = {.format = compute::Format::kInt8},
                  .bits_per_weight = 8.5,
                  .error = 0.001,
                  .uniform_error = 0.02},
                 {.layer = "tenants/t/jobs/j/layers/b",
                  .candidate = "",
                  .parameters = 100,
                  .recipe = {.format = compute::Format::kEntropyCoded,
                             .method = compute::Method::kWaterSic,
                             .rate_bits = 2.5},
                  .bits_per_weight = 2.5,
                  .error = 0.009,
                  .uniform_error = 0.006}};
  plan.parameters = 400;
  plan.bits_per_weight = 7.0;
  plan.error = 0.003;
  plan.uniform_bits_per_weight = 6.5;
  plan.uniform_error = 0.0165;
  plan.least_bits_per_weight = 1;
  plan.most_bits_per_weight = 8.5;
  plan.error_figure = "relative_output_error_weight_only";
  return plan;
}

TEST(PlanTextTest, ShowsEveryChoiceAndWhatItBuys) {
  const std::string text = FormatPlan(TwoLayers(), {});
  EXPECT_THAT(text, HasSubstr("int8 identity rtn"));
  EXPECT_THAT(text, HasSubstr("watersic 2.500"));
  EXPECT_THAT(text, HasSubstr("25.0%"));
  EXPECT_THAT(text, HasSubstr("uniform:   6.500 bits a weight, error 0.0165"));
  EXPECT_THAT(text, HasSubstr("planned:   7.000 bits a weight, error 0.003, 5.500 times less"));
  EXPECT_THAT(text, Not(HasSubstr("measured:")));
}

TEST(PlanTextTest, MeasuredFiguresStandBesideThePredictedOnes) {
  const MeasuredLayers measured = {{"tenants/t/jobs/j/layers/a", {8.5, 0.001}},
                                   {"tenants/t/jobs/j/layers/b", {2.9, 0.013}}};
  const std::string text = FormatPlan(TwoLayers(), measured);
  EXPECT_THAT(text, HasSubstr("measured:  7.100 bits a weight, error 0.004, 4.125 times less"));
  const nlohmann::json json = PlanToJson(TwoLayers(), 7, measured);
  EXPECT_NEAR(json["measured"]["bits_per_weight"], 7.1, 1e-12);
  EXPECT_NEAR(json["measured_gain"], 4.125, 1e-12);
  EXPECT_NEAR(json["predicted_gain"], 5.5, 1e-12);
  EXPECT_EQ(json["layers"][1]["recipe"]["rate_bits"], 2.5);
  EXPECT_EQ(json["layers"][1]["measured_error"], 0.013);
}

TEST(PlanTextTest, WithoutAUniformChoiceThereIsNoGain) {
  client::Plan plan = TwoLayers();
  plan.uniform_error.reset();
  plan.uniform_bits_per_weight.reset();
  EXPECT_THAT(FormatPlan(plan, {}), HasSubstr("no single choice for all layers fits"));
  const nlohmann::json json = PlanToJson(plan, 7, {});
  EXPECT_TRUE(json["uniform"].is_null());
  EXPECT_TRUE(json["predicted_gain"].is_null());
  EXPECT_TRUE(json["measured"].is_null());
}

}  // namespace
}  // namespace quantd::cli
