#include "server/jobs/job_plan.h"

#include <cmath>
#include <map>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

using ::testing::HasSubstr;

// A job of measured candidates: of each weight, one of every recipe.
class JobPlanTest : public ::testing::Test {
 protected:
  LayerRecord& Add(const std::string& weight, const std::string& suffix, compute::Recipe recipe,
                   double bits, double error, int64_t rows = 64) {
    LayerRecord layer;
    layer.layer_id = weight + "." + suffix;
    layer.rows = rows;
    layer.cols = 64;
    layer.recipe = recipe;
    layer.state = LayerState::kSucceeded;
    layer.weight.name = "acme/" + weight;
    layer.weight_of = "source/" + weight;
    figures_[layer.layer_id] = {bits, error, 2 * error};
    job_.tenant = "acme";
    job_.job_id = "measuring";
    job_.layers.push_back(layer);
    return job_.layers.back();
  }

  static compute::Recipe Rtn(compute::Format format) { return {.format = format}; }
  static compute::Recipe WaterSic(double rate) {
    return {.format = compute::Format::kEntropyCoded,
            .method = compute::Method::kWaterSic,
            .rate_bits = rate};
  }

  std::string ReasonOfRefusal(double bits = 6) {
    return DetailsOf(PlanJob(job_, figures_, bits).status()).reason;
  }

  JobRecord job_;
  std::map<std::string, MeasuredFigures> figures_;
};

TEST_F(JobPlanTest, FormatsGoWhereTheyHelpMost) {
  // The first weight is the harder one; 6 bits pay for one INT8.
  Add("a", "int4", Rtn(compute::Format::kInt4), 4, 0.02);
  Add("b", "int4", Rtn(compute::Format::kInt4), 4, 0.01);
  Add("a", "int8", Rtn(compute::Format::kInt8), 8, 0.0002);
  Add("b", "int8", Rtn(compute::Format::kInt8), 8, 0.0001);
  const auto plan = PlanJob(job_, figures_, 6.5);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->weights.size(), 2u);
  EXPECT_EQ(plan->weights[0].weight_of, "source/a");
  EXPECT_EQ(plan->weights[0].candidate_id, "a.int8");
  EXPECT_EQ(plan->weights[0].recipe, Rtn(compute::Format::kInt8));
  EXPECT_EQ(plan->weights[0].bits_per_weight, 8);
  EXPECT_EQ(plan->weights[0].error, 0.0002);
  EXPECT_EQ(plan->weights[0].uniform_error, 0.02);
  EXPECT_EQ(plan->weights[0].parameters, 64 * 64);
  EXPECT_EQ(plan->weights[1].weight_of, "source/b");
  EXPECT_EQ(plan->weights[1].candidate_id, "b.int4");
  EXPECT_EQ(plan->parameters, 2 * 64 * 64);
  EXPECT_EQ(plan->bits_per_weight, 6);
  EXPECT_NEAR(plan->error, 0.0051, 1e-12);
  EXPECT_EQ(plan->uniform_bits_per_weight, 4);
  EXPECT_NEAR(*plan->uniform_error, 0.015, 1e-12);
  EXPECT_EQ(plan->least_bits_per_weight, 4);
  EXPECT_EQ(plan->most_bits_per_weight, 8);
  EXPECT_TRUE(plan->of_outputs);
  EXPECT_EQ(plan->failed_candidates, 0);
}

TEST_F(JobPlanTest, RatesBetweenThoseMeasuredAreAskedFor) {
  // Measured 0.1 above what was asked for: the plan asks for 0.1 less than it wants to measure.
  for (const double rate : {1, 2, 3, 4, 5}) {
    const std::string suffix = std::to_string(rate);
    Add("a", suffix, WaterSic(rate), rate + 0.1, 4 * std::pow(4.0, -rate));
    Add("b", suffix, WaterSic(rate), rate + 0.1, 0.5 * std::pow(4.0, -rate));
  }
  const auto plan = PlanJob(job_, figures_, 3.1);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_NEAR(plan->bits_per_weight, 3.1, 1e-9);
  EXPECT_NEAR(plan->weights[0].bits_per_weight, 3.1 + 0.75, 1e-9);
  EXPECT_NEAR(plan->weights[0].recipe.rate_bits, 3.75, 1e-9);
  EXPECT_EQ(plan->weights[0].candidate_id, "a." + std::to_string(3.0));
  EXPECT_NEAR(plan->weights[1].recipe.rate_bits, 2.25, 1e-9);
  EXPECT_NEAR(plan->weights[0].error, plan->weights[1].error, 1e-9);
  EXPECT_NEAR(*plan->uniform_bits_per_weight, 3.1, 1e-9);
  EXPECT_NEAR(*plan->uniform_error / plan->error, 2.25 / std::sqrt(2.0), 1e-6);
  EXPECT_NEAR(plan->slope, 2 * std::log(2.0) * plan->error, 1e-9);
}

TEST_F(JobPlanTest, FusionGroupsAreChosenForTogether) {
  const auto add = [&](const std::string& weight, compute::Format format, double bits, double error,
                       int64_t rows) {
    const std::string name(compute::NameOf(format));
    Add(weight, name, Rtn(format), bits, error, rows).fusion_group = "qk." + name;
  };
  add("q", compute::Format::kInt4, 4, 0.04, 192);
  add("k", compute::Format::kInt4, 4, 0.0, 64);
  // In another order: the members are told apart by their weights.
  add("k", compute::Format::kInt8, 8, 0.0, 64);
  add("q", compute::Format::kInt8, 8, 0.0004, 192);
  const auto plan = PlanJob(job_, figures_, 8);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->weights.size(), 2u);
  EXPECT_EQ(plan->weights[0].candidate_id, "q.int8");
  EXPECT_EQ(plan->weights[1].candidate_id, "k.int8");
  EXPECT_EQ(plan->weights[0].parameters, 192 * 64);
  EXPECT_NEAR(plan->weights[0].error, 0.0003, 1e-12);
  EXPECT_NEAR(plan->weights[1].error, 0.0003, 1e-12);
  EXPECT_NEAR(plan->error, 0.0003, 1e-12);
}

TEST_F(JobPlanTest, WithoutCalibrationTheErrorsOfTheWeightsDecide) {
  Add("a", "int4", Rtn(compute::Format::kInt4), 4, 0.02);
  Add("b", "int4", Rtn(compute::Format::kInt4), 4, 0.01);
  figures_["b.int4"].output_error.reset();
  const auto plan = PlanJob(job_, figures_, 4);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_FALSE(plan->of_outputs);
  EXPECT_EQ(plan->weights[0].error, 0.04);
}

TEST_F(JobPlanTest, FailedCandidatesAreLeftOut) {
  Add("a", "int4", Rtn(compute::Format::kInt4), 4, 0.02);
  Add("a", "int8", Rtn(compute::Format::kInt8), 8, 0.0002).state = LayerState::kFailed;
  const auto plan = PlanJob(job_, figures_, 4);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->weights[0].candidate_id, "a.int4");
  EXPECT_EQ(plan->failed_candidates, 1);
  EXPECT_EQ(plan->most_bits_per_weight, 4);
  job_.layers[0].state = LayerState::kCancelled;
  EXPECT_EQ(ReasonOfRefusal(4), "NO_CANDIDATE");
}

TEST_F(JobPlanTest, UnfinishedCandidatesAreNamed) {
  Add("a", "int4", Rtn(compute::Format::kInt4), 4, 0.02);
  Add("a", "int8", Rtn(compute::Format::kInt8), 8, 0.0002).state = LayerState::kRunning;
  const absl::Status status = PlanJob(job_, figures_, 6).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(DetailsOf(status).reason, "CANDIDATES_UNFINISHED");
  EXPECT_THAT(std::string(status.message()), HasSubstr("a.int8"));
}

TEST_F(JobPlanTest, GroupsThatOverlapAreRefused) {
  Add("q", "int4", Rtn(compute::Format::kInt4), 4, 0.02).fusion_group = "qk";
  Add("k", "int4", Rtn(compute::Format::kInt4), 4, 0.02).fusion_group = "qk";
  Add("q", "int8", Rtn(compute::Format::kInt8), 8, 0.0002);
  EXPECT_EQ(ReasonOfRefusal(), "CANDIDATES_OVERLAP");
}

TEST_F(JobPlanTest, ABudgetOutOfReachNamesTheRange) {
  Add("a", "int4", Rtn(compute::Format::kInt4), 4, 0.02);
  Add("a", "int8", Rtn(compute::Format::kInt8), 8, 0.0002);
  const absl::Status status = PlanJob(job_, figures_, 3).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(status.message()), HasSubstr("4.0000..8.0000"));
}

// An ordinary job: each weight has one candidate, itself.
TEST_F(JobPlanTest, ALayerWithItsOwnWeightIsItsOwnSource) {
  Add("a", "int4", Rtn(compute::Format::kInt4), 4, 0.02).weight_of.clear();
  const auto plan = PlanJob(job_, figures_, 4);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->weights[0].weight_of, "measuring/a.int4");
}

}  // namespace
}  // namespace quantd::server
