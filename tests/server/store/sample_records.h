#pragma once

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/store/records.h"

// Records with every field away from its default, for tests of the stores.
namespace quantd::server {

inline absl::Time At(int64_t seconds) { return absl::FromUnixSeconds(1'700'000'000 + seconds); }

inline compute::Recipe SampleRecipe(compute::TransformKind transform, uint64_t seed) {
  compute::Recipe recipe;
  recipe.transform = transform;
  recipe.seed = seed;
  recipe.damping = 0.0625;
  auto resolved = compute::ResolveRecipe(recipe);
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  return resolved.ok() ? *resolved : recipe;
}

inline BlobRef SampleBlob(const std::string& name, int64_t size) {
  return {.name = name, .size = size, .sha256 = std::string(31, '\xa5') + '\0'};
}

inline LayerRecord SampleLayer(const std::string& id) {
  LayerRecord layer;
  layer.layer_id = id;
  layer.rows = 768;
  layer.cols = 3072;
  layer.dtype = compute::DType::kBF16;
  layer.fusion_group = "qkv";
  layer.statistic_id = "s-" + id;
  layer.second_moment_hat_id = "hat-" + id;
  layer.cross_moment_id = "cross-" + id;
  layer.residual_moment_id = "residual-" + id;
  layer.recipe = SampleRecipe(compute::TransformKind::kHadamard, 3);
  layer.has_own_recipe = true;
  layer.state = LayerState::kFailed;
  layer.error = absl::DataLossError("weight \"w\" \xc3\xa4 damaged");
  layer.error.SetPayload("type.googleapis.com/x", absl::Cord(std::string("\0\xff\x01", 3)));
  layer.device_seconds = 0.1;
  layer.upload_committed = 12345;
  layer.upload_staging = "acme/staging-" + id;
  layer.weight = SampleBlob("acme/weight-" + id, 4'718'592);
  return layer;
}

inline JobRecord SampleJob(const std::string& tenant, const std::string& id, int64_t seconds) {
  JobRecord job;
  job.tenant = tenant;
  job.job_id = id;
  job.display_name = "a 'quoted' name";
  job.request_id = "request-" + id;
  job.recipe = SampleRecipe(compute::TransformKind::kWush, 7);
  job.create_time = At(seconds) + absl::Microseconds(17);
  job.end_time = At(seconds + 5);
  job.state = JobState::kQueued;
  job.finished_layers = 1;
  job.priority = Priority::kHigh;
  job.deadline = At(seconds + 9);
  LayerRecord plain = SampleLayer("layer.0");
  plain.recipe = job.recipe;
  plain.has_own_recipe = false;
  plain.state = LayerState::kWaiting;
  plain.error = absl::OkStatus();
  plain.statistic_id.clear();
  plain.second_moment_hat_id.clear();
  plain.cross_moment_id.clear();
  plain.residual_moment_id.clear();
  plain.upload_staging.clear();
  plain.weight = {};
  job.layers = {plain, SampleLayer("layer.1")};
  return job;
}

inline StatisticStreamRecord SampleStream(const std::string& id, int64_t seq) {
  return {.stream_id = id,
          .dtype = compute::DType::kF16,
          .durable_seq = seq,
          .tokens = 100 * seq,
          .snapshot = SampleBlob(absl::StrCat("acme/snapshot-", id, "-", seq), 1000 + seq),
          .recent_crcs = {0u, 0xffffffffu, static_cast<uint32_t>(seq)}};
}

inline StatisticRecord SampleStatistic(const std::string& tenant, const std::string& id,
                                       int64_t seconds) {
  StatisticRecord statistic;
  statistic.tenant = tenant;
  statistic.statistic_id = id;
  statistic.spec = {.layout = compute::MomentLayout::kBlockDiagonal,
                    .block_size = 32,
                    .cols = 768,
                    .sample_rows = 100,
                    .sample_seed = 0xfedcba9876543210u};
  statistic.create_time = At(seconds);
  return statistic;
}

inline void ExpectEqual(const JobRecord& a, const JobRecord& b) {
  EXPECT_EQ(a.tenant, b.tenant);
  EXPECT_EQ(a.job_id, b.job_id);
  EXPECT_EQ(a.display_name, b.display_name);
  EXPECT_EQ(a.request_id, b.request_id);
  EXPECT_TRUE(a.recipe == b.recipe);
  EXPECT_EQ(a.create_time, b.create_time);
  EXPECT_EQ(a.end_time, b.end_time);
  EXPECT_EQ(a.state, b.state);
  EXPECT_EQ(a.finished_layers, b.finished_layers);
  EXPECT_EQ(a.priority, b.priority);
  EXPECT_EQ(a.deadline, b.deadline);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_TRUE(a.layers[i] == b.layers[i]) << "layer " << i;
  }
}

inline void ExpectEqual(const StatisticStreamRecord& a, const StatisticStreamRecord& b) {
  EXPECT_EQ(a.stream_id, b.stream_id);
  EXPECT_EQ(a.dtype, b.dtype);
  EXPECT_EQ(a.durable_seq, b.durable_seq);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_TRUE(a.snapshot == b.snapshot);
  EXPECT_EQ(a.recent_crcs, b.recent_crcs);
}

}  // namespace quantd::server
