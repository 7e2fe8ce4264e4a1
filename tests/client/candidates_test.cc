#include "client/cpp/candidates.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quantd::client {
namespace {

using compute::Format;
using compute::Method;
using compute::Recipe;
using compute::TransformKind;
using ::testing::ElementsAre;

Job Source() {
  Job job;
  job.name = "tenants/t/jobs/source";
  job.recipe = {.format = Format::kMxfp4, .transform = TransformKind::kWush, .group_size = 32};
  for (const char* id : {"q", "k", "up"}) {
    Layer layer;
    layer.layer_id = id;
    layer.name = job.name + "/layers/" + id;
    layer.rows = 8;
    layer.cols = 64;
    layer.statistic = "tenants/t/statistics/s";
    layer.state = LayerState::kSucceeded;
    if (layer.layer_id != "up") layer.fusion_group = "qk";
    job.layers.push_back(layer);
  }
  job.layers[2].recipe = Recipe{.format = Format::kInt4, .method = Method::kGptq, .group_size = 64};
  return job;
}

TEST(CandidatesTest, FormatsTakeTheLayersTransformsAndMethods) {
  const auto job = MeasuringJob(Source(), {.formats = {Format::kMxfp4, Format::kInt4}}, 5);
  ASSERT_TRUE(job.ok()) << job.status();
  std::vector<std::string> ids, groups;
  for (const Layer& layer : job->layers) {
    ids.push_back(layer.layer_id);
    groups.push_back(layer.fusion_group);
    EXPECT_EQ(layer.rows, 8);
    EXPECT_EQ(layer.statistic, "tenants/t/statistics/s");
    EXPECT_EQ(layer.name, "");
    EXPECT_EQ(layer.state, LayerState::kUnspecified);
  }
  EXPECT_THAT(ids, ElementsAre("q.mxfp4", "q.int4", "k.mxfp4", "k.int4", "up.mxfp4", "up.int4"));
  EXPECT_THAT(groups, ElementsAre("qk.mxfp4", "qk.int4", "qk.mxfp4", "qk.int4", "", ""));
  EXPECT_EQ(job->layers[0].weight_of, "tenants/t/jobs/source/layers/q");
  // The same format keeps its options, another one gets its own defaults.
  EXPECT_EQ(job->layers[0].recipe, Source().recipe);
  EXPECT_EQ(job->layers[1].recipe,
            (Recipe{.format = Format::kInt4, .transform = TransformKind::kWush}));
  EXPECT_EQ(job->layers[4].recipe, (Recipe{.format = Format::kMxfp4, .method = Method::kGptq}));
  EXPECT_EQ(job->layers[5].recipe->group_size, 64);
}

TEST(CandidatesTest, MethodAndTransformCanBeOverridden) {
  const auto job = MeasuringJob(
      Source(),
      {.formats = {Format::kMxfp4}, .method = Method::kRtn, .transform = TransformKind::kHadamard},
      5);
  ASSERT_TRUE(job.ok()) << job.status();
  for (const Layer& layer : job->layers) {
    EXPECT_EQ(layer.recipe->method, Method::kRtn);
    EXPECT_EQ(layer.recipe->transform, TransformKind::kHadamard);
  }
}

TEST(CandidatesTest, RatesOfWaterSicLieAroundTheBudget) {
  EXPECT_THAT(DefaultRates(Method::kWaterSic, 3), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(DefaultRates(Method::kWaterSic, 1), ElementsAre(0.5, 1, 2, 3));
  EXPECT_THAT(DefaultRates(Method::kWaterSic, 15.5), ElementsAre(13.5, 14.5, 15.5, 16));
  EXPECT_THAT(DefaultRates(Method::kHiggs, 3), ElementsAre(2, 3, 4));
  const auto job = MeasuringJob(Source(), {.method = Method::kWaterSic, .rates = {2, 2.5}}, 3);
  ASSERT_TRUE(job.ok()) << job.status();
  ASSERT_EQ(job->layers.size(), 6u);
  EXPECT_EQ(job->layers[1].layer_id, "q.watersic-2.5");
  EXPECT_EQ(job->layers[1].fusion_group, "qk.watersic-2.5");
  EXPECT_EQ(
      job->layers[1].recipe,
      (Recipe{.format = Format::kEntropyCoded, .method = Method::kWaterSic, .rate_bits = 2.5}));
}

TEST(CandidatesTest, DriftGoesToMethodsThatReadIt) {
  Job source = Source();
  source.layers = {source.layers[2]};
  source.layers[0].second_moment_hat = "hat";
  source.layers[0].cross_moment = "cross";
  source.layers[0].residual_moment = "residual";
  source.layers[0].recipe->gptq.asymmetric = true;
  const auto watersic = MeasuringJob(source, {.method = Method::kWaterSic, .rates = {2}}, 2);
  ASSERT_TRUE(watersic.ok());
  EXPECT_EQ(watersic->layers[0].cross_moment, "cross");
  EXPECT_EQ(watersic->layers[0].residual_moment, "residual");
  const auto gptq = MeasuringJob(source, {.formats = {Format::kInt8}}, 8);
  EXPECT_EQ(gptq->layers[0].second_moment_hat, "hat");
  EXPECT_EQ(gptq->layers[0].residual_moment, "");
  const auto rtn = MeasuringJob(source, {.formats = {Format::kInt8}, .method = Method::kRtn}, 8);
  EXPECT_EQ(rtn->layers[0].second_moment_hat, "");
  EXPECT_EQ(rtn->layers[0].cross_moment, "");
}

TEST(CandidatesTest, OptionsThatDoNotFitAreRefused) {
  for (const CandidateOptions& options :
       {CandidateOptions{}, CandidateOptions{.rates = {2}},
        CandidateOptions{.formats = {Format::kInt4}, .method = Method::kWaterSic},
        CandidateOptions{.formats = {Format::kInt4}, .rates = {2}},
        CandidateOptions{.formats = {Format::kInt4, Format::kInt4}}}) {
    EXPECT_EQ(MeasuringJob(Source(), options, 3).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(CandidatesTest, ThePlannedJobHasTheLayersOfTheSource) {
  Plan plan;
  for (const Layer& layer : Source().layers) {
    plan.layers.push_back({.layer = layer.name, .candidate = "", .recipe = {.seed = 7}});
  }
  const auto job = PlannedJob(Source(), plan);
  ASSERT_TRUE(job.ok()) << job.status();
  ASSERT_EQ(job->layers.size(), 3u);
  EXPECT_EQ(job->layers[0].layer_id, "q");
  EXPECT_EQ(job->layers[0].fusion_group, "qk");
  EXPECT_EQ(job->layers[0].weight_of, "tenants/t/jobs/source/layers/q");
  EXPECT_EQ(job->layers[0].recipe, Recipe{.seed = 7});
  plan.layers.pop_back();
  EXPECT_EQ(PlannedJob(Source(), plan).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quantd::client
