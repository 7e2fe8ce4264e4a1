#include "server/jobs/job_rules.h"

#include <memory>
#include <string>
#include <vector>

#include "compute/backend/cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

LayerRecord Layer(const std::string& id, int64_t rows, int64_t cols) {
  LayerRecord layer;
  layer.layer_id = id;
  layer.rows = rows;
  layer.cols = cols;
  layer.statistic_id = "s";
  return layer;
}

class JobRulesTest : public ::testing::Test {
 protected:
  JobRecord job_;
  JobLimits limits_;
  const std::unique_ptr<compute::Backend> backend_ = compute::NewCpuBackend(1);

  absl::Status Prepare() { return PrepareJob(job_, limits_, *backend_).status(); }
  std::string FieldOfRefusal() { return DetailsOf(Prepare()).field.value_or("none"); }
};

TEST_F(JobRulesTest, EstimateGrowsWithTheLayersAndFillsDefaults) {
  job_.layers = {Layer("a", 64, 64)};
  const auto one = PrepareJob(job_, limits_, *backend_);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(job_.layers[0].recipe.group_size, 32);
  job_.layers = {Layer("a", 64, 64), Layer("b", 128, 64)};
  const auto two = PrepareJob(job_, limits_, *backend_);
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_GT(two->peak_bytes, one->peak_bytes);
  EXPECT_GT(two->output_bytes, 2 * one->output_bytes);
  EXPECT_GT(two->device_seconds, one->device_seconds);
}

TEST_F(JobRulesTest, RefusalsNameTheField) {
  EXPECT_EQ(FieldOfRefusal(), "job.layers");
  job_.layers = {Layer("a", 64, 64), Layer("a", 64, 64)};
  EXPECT_EQ(FieldOfRefusal(), "job.layers[1].layer_id");
  job_.layers = {Layer("a", 0, 64)};
  EXPECT_EQ(FieldOfRefusal(), "job.layers[0].rows");
  job_.layers = {Layer("a", 64, 100)};
  EXPECT_EQ(FieldOfRefusal(), "job.layers[0].cols");
  job_.layers = {Layer("a", 64, 64)};
  job_.layers[0].recipe.transform = compute::TransformKind::kWush;
  job_.layers[0].statistic_id.clear();
  EXPECT_EQ(FieldOfRefusal(), "job.layers[0].statistic");
  job_.layers = {Layer("a", 64, 64)};
  job_.layers[0].dtype = compute::DType::kI32;
  EXPECT_EQ(FieldOfRefusal(), "job.layers[0].dtype");
}

TEST_F(JobRulesTest, RecipesThatNoLayerUsesAreCheckedToo) {
  job_.layers = {Layer("a", 64, 64)};
  job_.layers[0].has_own_recipe = true;
  EXPECT_TRUE(Prepare().ok());
  job_.recipe = {.format = compute::Format::kEntropyCoded,
                 .transform = compute::TransformKind::kHadamard,
                 .method = compute::Method::kWaterSic,
                 .rate_bits = 3.0};
  EXPECT_EQ(FieldOfRefusal(), "job.recipe.transform");
}

TEST_F(JobRulesTest, LimitsHold) {
  job_.layers = {Layer("a", 64, 64), Layer("b", 64, 64)};
  limits_.max_layers_per_job = 1;
  EXPECT_EQ(FieldOfRefusal(), "job.layers");
  limits_.max_layers_per_job = 2;
  limits_.max_dimension = 63;
  EXPECT_EQ(FieldOfRefusal(), "job.layers[0].rows");
  limits_.max_dimension = 64;
  limits_.max_weight_bytes = 64 * 64 * 4 - 1;
  EXPECT_TRUE(absl::IsInvalidArgument(Prepare()));
  limits_.max_weight_bytes = 64 * 64 * 4;
  EXPECT_TRUE(Prepare().ok());
  limits_.max_layer_bytes = 1;
  EXPECT_TRUE(absl::IsResourceExhausted(Prepare()));
}

TEST_F(JobRulesTest, MethodsThatAreNotThereAreRefused) {
  job_.layers = {Layer("a", 64, 64)};
  job_.layers[0].recipe.method = static_cast<compute::Method>(99);
  EXPECT_TRUE(absl::IsUnimplemented(Prepare()));
}

// Which of the further statistics a recipe takes.
TEST_F(JobRulesTest, StatisticsThatTheRecipeDoesNotReadAreRefused) {
  const auto refused_field = [&](compute::Method method, bool asymmetric, const std::string& hat,
                                 const std::string& cross, const std::string& residual) {
    LayerRecord layer = Layer("a", 64, 64);
    layer.recipe.method = method;
    layer.recipe.format = compute::ImpliedFormat(method).value_or(compute::Format::kMxfp4);
    layer.recipe.gptq.asymmetric = asymmetric;
    layer.recipe.rate_bits = method == compute::Method::kWaterSic ? 3.0 : 0.0;
    layer.second_moment_hat_id = hat;
    layer.cross_moment_id = cross;
    layer.residual_moment_id = residual;
    job_.layers = {layer};
    const absl::Status status = Prepare();
    return status.ok() ? "accepted" : DetailsOf(status).field.value_or("none");
  };
  using compute::Method;
  const std::string hat = "job.layers[0].second_moment_hat";
  const std::string cross = "job.layers[0].cross_moment";
  const std::string residual = "job.layers[0].residual_moment";
  EXPECT_EQ(refused_field(Method::kRtn, false, "", "", ""), "accepted");
  EXPECT_EQ(refused_field(Method::kRtn, false, "h", "c", ""), hat);
  EXPECT_EQ(refused_field(Method::kRtn, false, "", "c", ""), cross);
  EXPECT_EQ(refused_field(Method::kRtn, false, "", "", "r"), residual);
  EXPECT_EQ(refused_field(Method::kGptq, false, "h", "c", ""), hat);
  EXPECT_EQ(refused_field(Method::kGptq, true, "", "", ""), hat);
  EXPECT_EQ(refused_field(Method::kGptq, true, "h", "", ""), cross);
  EXPECT_EQ(refused_field(Method::kGptq, true, "h", "c", "r"), residual);
  EXPECT_EQ(refused_field(Method::kGptq, true, "h", "c", ""), "accepted");
  EXPECT_EQ(refused_field(Method::kWaterSic, false, "", "", ""), "accepted");
  EXPECT_EQ(refused_field(Method::kWaterSic, false, "h", "", ""), cross);
  EXPECT_EQ(refused_field(Method::kWaterSic, false, "", "c", "r"), hat);
  EXPECT_EQ(refused_field(Method::kWaterSic, false, "h", "c", "r"), "accepted");
}

TEST_F(JobRulesTest, GroupsNameEveryStatistic) {
  LayerRecord layer = Layer("a", 64, 64);
  layer.cross_moment_id = "c";
  layer.second_moment_hat_id = "h";
  job_.layers = {layer, Layer("b", 64, 64)};
  job_.layers[1].statistic_id.clear();
  const std::vector<LayerGroup> groups = GroupsOf(job_);
  ASSERT_EQ(groups.size(), 2u);
  std::vector<std::string> uses;
  for (const StatisticUse& use : groups[0].statistics) {
    uses.push_back(std::string(use.field) + "=" + use.statistic_id);
  }
  EXPECT_EQ(uses,
            (std::vector<std::string>{"statistic=s", "second_moment_hat=h", "cross_moment=c"}));
  EXPECT_TRUE(groups[1].statistics.empty());
}

TEST(CheckStatisticTest, KindsAndShapesHaveToFit) {
  using compute::MomentKind;
  const LayerRecord layer = [] {
    LayerRecord wush = Layer("a", 32, 64);
    wush.recipe.transform = compute::TransformKind::kWush;
    wush.recipe = compute::ResolveRecipe(wush.recipe).value();
    return wush;
  }();
  const auto refused = [&](absl::string_view field, const compute::MomentSpec& spec) {
    const absl::Status status = CheckStatistic(layer, 3, {field, "s"}, spec);
    if (status.ok()) return std::string();
    EXPECT_EQ(DetailsOf(status).field, "job.layers[3]." + std::string(field));
    return std::string(status.message());
  };
  const compute::MomentSpec plain = {.cols = 64};
  const compute::MomentSpec weighted = {.kind = MomentKind::kWeighted, .cols = 64};
  const compute::MomentSpec cross = {.kind = MomentKind::kCross, .cols = 64, .paired_cols = 64};
  const compute::MomentSpec residual = {
      .kind = MomentKind::kResidual, .cols = 64, .paired_cols = 32};
  for (const absl::string_view field : {"statistic", "second_moment_hat"}) {
    EXPECT_EQ(refused(field, plain), "");
    EXPECT_EQ(refused(field, weighted), "");
    EXPECT_NE(refused(field, cross).find("SECOND_MOMENT or WEIGHTED, got CROSS"),
              std::string::npos);
    EXPECT_NE(refused(field, residual), "");
    EXPECT_NE(refused(field, {.cols = 32}).find("64 columns"), std::string::npos);
  }
  EXPECT_EQ(refused("cross_moment", cross), "");
  EXPECT_NE(refused("cross_moment", plain).find("CROSS_MOMENT, got SECOND_MOMENT"),
            std::string::npos);
  EXPECT_NE(refused("cross_moment", residual), "");
  EXPECT_EQ(refused("residual_moment", residual), "");
  EXPECT_NE(refused("residual_moment", cross), "");
  EXPECT_NE(
      refused("residual_moment", {.kind = MomentKind::kResidual, .cols = 64, .paired_cols = 31})
          .find("32 paired columns, the rows of the layer, got one of 31"),
      std::string::npos);
  const compute::MomentSpec blocks = {
      .layout = compute::MomentLayout::kBlockDiagonal, .block_size = 32, .cols = 64};
  EXPECT_EQ(refused("statistic", blocks), "");
  EXPECT_NE(refused("second_moment_hat", blocks).find("full"), std::string::npos);
}

TEST_F(JobRulesTest, FusionGroupsShareTheirInput) {
  job_.layers = {Layer("q", 64, 64), Layer("o", 64, 32), Layer("k", 32, 64)};
  job_.layers[0].fusion_group = job_.layers[2].fusion_group = "qk";
  ASSERT_TRUE(Prepare().ok());
  const std::vector<LayerGroup> groups = GroupsOf(job_);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].members, (std::vector<size_t>{0, 2}));
  EXPECT_EQ(groups[0].rows, 96);
  EXPECT_EQ(groups[1].members, std::vector<size_t>{1});

  job_.layers[2].statistic_id = "other";
  EXPECT_EQ(FieldOfRefusal(), "job.layers[2].statistic");
  job_.layers[2] = Layer("k", 32, 32);
  job_.layers[2].fusion_group = "qk";
  EXPECT_EQ(FieldOfRefusal(), "job.layers[2].cols");
}

TEST(DeriveJobStateTest, FollowsFromTheLayers) {
  const absl::Time now = absl::FromUnixSeconds(100);
  const auto state = [&](std::vector<LayerState> states) {
    JobRecord job;
    for (const LayerState s : states) {
      job.layers.emplace_back();
      job.layers.back().state = s;
    }
    DeriveJobState(job, now);
    EXPECT_EQ(HasEnded(job.state), job.end_time.has_value());
    return job.state;
  };
  using L = LayerState;
  EXPECT_EQ(state({L::kWaiting, L::kSucceeded}), JobState::kAccepting);
  EXPECT_EQ(state({L::kWaiting, L::kQueued}), JobState::kQueued);
  EXPECT_EQ(state({L::kQueued, L::kRunning}), JobState::kRunning);
  EXPECT_EQ(state({L::kSucceeded, L::kSucceeded}), JobState::kSucceeded);
  EXPECT_EQ(state({L::kSucceeded, L::kFailed}), JobState::kFailed);
  EXPECT_EQ(state({L::kSucceeded, L::kFailed, L::kCancelled}), JobState::kCancelled);
  EXPECT_EQ(state({L::kFailed, L::kWaiting}), JobState::kAccepting);
}

}  // namespace
}  // namespace quantd::server
