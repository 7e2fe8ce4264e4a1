#include "server/jobs/weight_source.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/errors/error.h"
#include "server/store/sqlite_job_store.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

LayerRecord Layer(const std::string& id, const std::string& weight_of = "") {
  LayerRecord layer;
  layer.layer_id = id;
  layer.rows = 8;
  layer.cols = 16;
  layer.weight_of = weight_of;
  return layer;
}

class WeightSourceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto store = OpenSqliteJobStore(directory_.File("quantd.sqlite"));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    JobRecord source = Job("source", {Layer("complete"), Layer("incomplete")});
    source.layers[0].weight = {"acme/blob", 512, std::string(32, 'x')};
    ASSERT_TRUE(store_->InsertJob(source, 100).ok());
  }

  static JobRecord Job(const std::string& id, std::vector<LayerRecord> layers) {
    JobRecord job;
    job.tenant = "acme";
    job.job_id = id;
    job.layers = std::move(layers);
    return job;
  }

  absl::Status Take(LayerRecord layer) {
    JobRecord job = Job("new", {std::move(layer)});
    return TakeWeights(*store_, job);
  }

  TempDirectory directory_;
  std::unique_ptr<JobStore> store_;
};

TEST_F(WeightSourceTest, TheWeightIsTakenWhole) {
  JobRecord job =
      Job("new", {Layer("a", "source/complete"), Layer("b"), Layer("c", "source/complete")});
  ASSERT_TRUE(TakeWeights(*store_, job).ok());
  EXPECT_EQ(job.layers[0].weight.name, "acme/blob");
  EXPECT_EQ(job.layers[0].weight.size, 512);
  EXPECT_EQ(job.layers[0].upload_committed, 512);
  EXPECT_EQ(job.layers[1].weight.name, "");
  EXPECT_EQ(job.layers[2].weight, job.layers[0].weight);
}

TEST_F(WeightSourceTest, RefusalsNameTheField) {
  for (const std::string source : {"source/absent", "absent/complete"}) {
    const absl::Status status = Take(Layer("a", source));
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(std::string(status.message()).rfind("job.layers[0].weight_of", 0), 0u) << status;
  }
  const absl::Status incomplete = Take(Layer("a", "source/incomplete"));
  EXPECT_EQ(incomplete.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(DetailsOf(incomplete).subject, "tenants/acme/jobs/source/layers/incomplete");
  for (int change = 0; change < 3; ++change) {
    LayerRecord layer = Layer("a", "source/complete");
    if (change == 0) layer.rows = 9;
    if (change == 1) layer.cols = 17;
    if (change == 2) layer.dtype = compute::DType::kBF16;
    EXPECT_EQ(DetailsOf(Take(layer)).field, "job.layers[0].weight_of");
  }
}

// The weight stays until the last layer that has it goes; what is gone cannot be taken any more.
TEST_F(WeightSourceTest, ASharedWeightLivesAsLongAsItsLastLayer) {
  JobRecord job = Job("new", {Layer("a", "source/complete")});
  ASSERT_TRUE(TakeWeights(*store_, job).ok());
  ASSERT_TRUE(store_->InsertJob(job, 100).ok());
  const auto stored = store_->GetJob("acme", "new");
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->layers[0].weight, job.layers[0].weight);
  EXPECT_EQ(stored->layers[0].weight_of, "source/complete");
  EXPECT_EQ(stored->layers[0].upload_committed, 512);

  EXPECT_THAT(*store_->DeleteJob("acme", "source"), IsEmpty());
  job.job_id = "another";
  EXPECT_TRUE(store_->InsertJob(job, 100).ok());  // "new" still has it
  EXPECT_THAT(*store_->DeleteJob("acme", "new"), IsEmpty());
  EXPECT_THAT(*store_->DeleteJob("acme", "another"), ElementsAre("acme/blob"));
  EXPECT_EQ(store_->InsertJob(job, 100).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_->GetJob("acme", "another").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace quantd::server
