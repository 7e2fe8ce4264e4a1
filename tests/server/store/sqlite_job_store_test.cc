#include "server/store/sqlite_job_store.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/store/sample_records.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr int kNoLimit = 1'000'000;

class SqliteJobStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { Open(); }

  void Open(SqliteJobStoreOptions options = {}) {
    store_.reset();
    auto store = OpenSqliteJobStore(path_, options);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  void Insert(const JobRecord& job) {
    const absl::Status status = store_->InsertJob(job, kNoLimit);
    ASSERT_TRUE(status.ok()) << status;
  }
  void Insert(const StatisticRecord& statistic) {
    const absl::Status status = store_->InsertStatistic(statistic, kNoLimit);
    ASSERT_TRUE(status.ok()) << status;
  }

  TempDirectory directory_;
  std::string path_ = directory_.File("quantd.db");
  std::unique_ptr<JobStore> store_;
};

TEST_F(SqliteJobStoreTest, EveryFieldOfAJobSurvivesReopening) {
  const JobRecord job = SampleJob("acme", "j1", 1);
  Insert(job);
  Open();
  const auto read = store_->GetJob("acme", "j1");
  ASSERT_TRUE(read.ok()) << read.status();
  ExpectEqual(*read, job);
}

TEST_F(SqliteJobStoreTest, EveryStateRoundTrips) {
  for (const JobState state : {JobState::kAccepting, JobState::kQueued, JobState::kRunning,
                               JobState::kSucceeded, JobState::kFailed, JobState::kCancelled}) {
    JobRecord job = SampleJob("acme", absl::StrCat("j", static_cast<int>(state)), 1);
    job.state = state;
    job.end_time.reset();
    job.layers[0].state = static_cast<LayerState>(state);
    Insert(job);
    const auto read = store_->GetJob("acme", job.job_id);
    ASSERT_TRUE(read.ok()) << read.status();
    ExpectEqual(*read, job);
  }
}

TEST_F(SqliteJobStoreTest, JobIdAndRequestIdAreUniqueWithinATenant) {
  Insert(SampleJob("acme", "j1", 1));
  const absl::Status same_id = store_->InsertJob(SampleJob("acme", "j1", 2), kNoLimit);
  EXPECT_EQ(same_id.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(same_id.message()), HasSubstr("tenants/acme/jobs/j1"));

  JobRecord same_request = SampleJob("acme", "j2", 2);
  same_request.request_id = "request-j1";
  const absl::Status status = store_->InsertJob(same_request, kNoLimit);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("request-j1"));
  EXPECT_EQ(store_->GetJob("acme", "j2").status().code(), absl::StatusCode::kNotFound);

  Insert(SampleJob("other", "j1", 1));
  JobRecord without = SampleJob("acme", "j3", 3);
  without.request_id.clear();
  Insert(without);
  without.job_id = "j4";
  Insert(without);
}

TEST_F(SqliteJobStoreTest, ADuplicateLayerRefusesTheWholeJob) {
  JobRecord job = SampleJob("acme", "j1", 1);
  job.layers[1].layer_id = job.layers[0].layer_id;
  const absl::Status status = store_->InsertJob(job, kNoLimit);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("layers/layer.0"));
  EXPECT_EQ(store_->GetJob("acme", "j1").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SqliteJobStoreTest, TheLimitOfJobsCountsOneTenant) {
  Insert(SampleJob("acme", "j1", 1));
  Insert(SampleJob("other", "j1", 1));
  const absl::Status status = store_->InsertJob(SampleJob("acme", "j2", 2), 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the limit is 1"));
  ASSERT_TRUE(store_->DeleteJob("acme", "j1").ok());
  EXPECT_TRUE(store_->InsertJob(SampleJob("acme", "j2", 2), 1).ok());
}

TEST_F(SqliteJobStoreTest, AnotherTenantsJobDoesNotExist) {
  Insert(SampleJob("acme", "j1", 1));
  EXPECT_EQ(store_->GetJob("other", "j1").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->FindJobByRequest("other", "request-j1").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->DeleteJob("other", "j1").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->SetUploadCommitted("other", "j1", "layer.0", 1).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(SqliteJobStoreTest, AJobIsFoundByItsRequest) {
  Insert(SampleJob("acme", "j1", 1));
  const auto job = store_->FindJobByRequest("acme", "request-j1");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->job_id, "j1");
}

TEST_F(SqliteJobStoreTest, ListsArePagedNewestFirst) {
  for (int i = 0; i < 5; ++i) Insert(SampleJob("acme", absl::StrCat("j", i), i));
  JobRecord twin = SampleJob("acme", "j9", 4);  // the same time as j4
  Insert(twin);
  Insert(SampleJob("other", "x", 2));

  std::vector<std::string> ids;
  std::string token;
  do {
    const auto page = store_->ListJobs("acme", 2, token);
    ASSERT_TRUE(page.ok()) << page.status();
    ASSERT_LE(page->items.size(), 2u);
    for (const JobRecord& job : page->items) {
      ids.push_back(job.job_id);
      EXPECT_THAT(job.layers, IsEmpty());
    }
    token = page->next_token;
  } while (!token.empty());
  EXPECT_THAT(ids, ElementsAre("j9", "j4", "j3", "j2", "j1", "j0"));
}

TEST_F(SqliteJobStoreTest, APageThatEndsTheListHasNoToken) {
  Insert(SampleJob("acme", "j1", 1));
  const auto page = store_->ListJobs("acme", 1, "");
  ASSERT_TRUE(page.ok());
  EXPECT_EQ(page->items.size(), 1u);
  EXPECT_EQ(page->next_token, "");
}

TEST_F(SqliteJobStoreTest, ForeignPageTokensAndSizesAreRefused) {
  for (int i = 0; i < 3; ++i) Insert(SampleJob("acme", absl::StrCat("j", i), i));
  const auto page = store_->ListJobs("acme", 1, "");
  ASSERT_TRUE(page.ok());
  EXPECT_EQ(store_->ListJobs("other", 1, page->next_token).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->ListStatistics("acme", 1, page->next_token).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->ListJobs("acme", 1, "made up").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->ListJobs("acme", 0, "").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SqliteJobStoreTest, UnfinishedJobsComeWithLayersOldestFirst) {
  JobRecord old = SampleJob("other", "old", 1);
  old.state = JobState::kRunning;
  JobRecord ended = SampleJob("acme", "ended", 2);
  ended.state = JobState::kSucceeded;
  JobRecord young = SampleJob("acme", "young", 3);
  young.state = JobState::kAccepting;
  Insert(young);
  Insert(ended);
  Insert(old);
  const auto jobs = store_->UnfinishedJobs();
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  ASSERT_EQ(jobs->size(), 2u);
  ExpectEqual((*jobs)[0], old);
  ExpectEqual((*jobs)[1], young);
}

TEST_F(SqliteJobStoreTest, AnUpdateMovesLayersAndArtifactsTogether) {
  Insert(SampleJob("acme", "j1", 1));
  const auto updated =
      store_->UpdateJob("acme", "j1", [](JobRecord& job, std::vector<ArtifactRecord>& artifacts) {
        job.state = JobState::kSucceeded;
        job.end_time = At(77);
        job.finished_layers = 2;
        job.layers[0].state = LayerState::kSucceeded;
        job.layers[0].device_seconds = 1.5;
        artifacts.push_back({.artifact_id = "layer.0.safetensors",
                             .layer_id = "layer.0",
                             .blob = SampleBlob("acme/result", 99),
                             .create_time = At(77)});
        return absl::OkStatus();
      });
  ASSERT_TRUE(updated.ok()) << updated.status();
  Open();
  const auto read = store_->GetJob("acme", "j1");
  ASSERT_TRUE(read.ok()) << read.status();
  ExpectEqual(*read, *updated);
  EXPECT_EQ(read->layers[0].state, LayerState::kSucceeded);

  const auto artifact = store_->GetArtifact("acme", "j1", "layer.0.safetensors");
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  EXPECT_EQ(artifact->layer_id, "layer.0");
  EXPECT_EQ(artifact->create_time, At(77));
  EXPECT_TRUE(artifact->blob == SampleBlob("acme/result", 99));
}

TEST_F(SqliteJobStoreTest, AFailedUpdateChangesNothing) {
  const JobRecord job = SampleJob("acme", "j1", 1);
  Insert(job);
  const auto refused =
      store_->UpdateJob("acme", "j1", [](JobRecord& record, std::vector<ArtifactRecord>&) {
        record.state = JobState::kFailed;
        record.layers[0].upload_committed = 1;
        return absl::AbortedError("thought better of it");
      });
  EXPECT_EQ(refused.status(), absl::AbortedError("thought better of it"));

  const auto duplicate = [](JobRecord& record, std::vector<ArtifactRecord>& artifacts) {
    record.finished_layers = 2;
    artifacts.push_back(
        {.artifact_id = "a", .layer_id = "layer.0", .blob = {}, .create_time = At(1)});
    artifacts.push_back(
        {.artifact_id = "a", .layer_id = "layer.1", .blob = {}, .create_time = At(1)});
    return absl::OkStatus();
  };
  EXPECT_EQ(store_->UpdateJob("acme", "j1", duplicate).status().code(),
            absl::StatusCode::kAlreadyExists);

  const auto read = store_->GetJob("acme", "j1");
  ASSERT_TRUE(read.ok());
  ExpectEqual(*read, job);
  EXPECT_EQ(store_->GetArtifact("acme", "j1", "a").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SqliteJobStoreTest, AnUpdateMustNotChangeKeys) {
  Insert(SampleJob("acme", "j1", 1));
  const auto renamed =
      store_->UpdateJob("acme", "j1", [](JobRecord& job, std::vector<ArtifactRecord>&) {
        job.layers[0].layer_id = "another";
        return absl::OkStatus();
      });
  EXPECT_EQ(renamed.status().code(), absl::StatusCode::kInternal);
  const auto shortened =
      store_->UpdateJob("acme", "j1", [](JobRecord& job, std::vector<ArtifactRecord>&) {
        job.layers.pop_back();
        return absl::OkStatus();
      });
  EXPECT_EQ(shortened.status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(
      store_
          ->UpdateJob("acme", "no",
                      [](JobRecord&, std::vector<ArtifactRecord>&) { return absl::OkStatus(); })
          .status()
          .code(),
      absl::StatusCode::kNotFound);
}

TEST_F(SqliteJobStoreTest, DeviceUseIsAddedUpByTenantAndDay) {
  ASSERT_TRUE(store_->InsertJob(SampleJob("acme", "j1", 1), kNoLimit).ok());
  const auto nothing = [](JobRecord&, std::vector<ArtifactRecord>&) { return absl::OkStatus(); };
  const auto refuse = [](JobRecord&, std::vector<ArtifactRecord>&) {
    return absl::AbortedError("no");
  };
  ASSERT_TRUE(store_->UpdateJob("acme", "j1", nothing, {.day = 7, .seconds = 1.5}).ok());
  ASSERT_TRUE(store_->UpdateJob("acme", "j1", nothing).ok());
  EXPECT_FALSE(store_->UpdateJob("acme", "j1", refuse, {.day = 7, .seconds = 100}).ok());
  ASSERT_TRUE(store_->AddDeviceUse("acme", {.day = 7, .seconds = 2}).ok());
  ASSERT_TRUE(store_->AddDeviceUse("acme", {.day = 8, .seconds = 4}).ok());
  ASSERT_TRUE(store_->AddDeviceUse("other", {.day = 7, .seconds = 8}).ok());
  Open();
  const auto seconds = store_->DeviceSecondsOf(7);
  ASSERT_TRUE(seconds.ok()) << seconds.status();
  EXPECT_EQ(*seconds, (std::map<std::string, double>{{"acme", 3.5}, {"other", 8}}));
  EXPECT_TRUE(store_->DeviceSecondsOf(9)->empty());
  // What a tenant has used outlives the job.
  ASSERT_TRUE(store_->DeleteJob("acme", "j1").ok());
  EXPECT_EQ((*store_->DeviceSecondsOf(7))["acme"], 3.5);
}

TEST_F(SqliteJobStoreTest, UploadsMoveForwardAlone) {
  const JobRecord job = SampleJob("acme", "j1", 1);
  Insert(job);
  ASSERT_TRUE(store_->SetUploadCommitted("acme", "j1", "layer.1", 777).ok());
  const auto read = store_->GetJob("acme", "j1");
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->layers[1].upload_committed, 777);
  EXPECT_TRUE(read->layers[0] == job.layers[0]);
  const absl::Status status = store_->SetUploadCommitted("acme", "j1", "layer.9", 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tenants/acme/jobs/j1/layers/layer.9"));
}

TEST_F(SqliteJobStoreTest, ArtifactsAreListedPerJob) {
  Insert(SampleJob("acme", "j1", 1));
  Insert(SampleJob("acme", "j2", 2));
  ASSERT_TRUE(store_
                  ->UpdateJob("acme", "j1",
                              [](JobRecord&, std::vector<ArtifactRecord>& artifacts) {
                                for (int i = 0; i < 3; ++i) {
                                  artifacts.push_back({.artifact_id = absl::StrCat("a", i),
                                                       .layer_id = "layer.0",
                                                       .blob = SampleBlob("acme/r", i),
                                                       .create_time = At(i)});
                                }
                                return absl::OkStatus();
                              })
                  .ok());
  auto page = store_->ListArtifacts("acme", "j1", 2, "");
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->items.size(), 2u);
  EXPECT_EQ(page->items[0].artifact_id, "a2");
  EXPECT_EQ(page->items[1].artifact_id, "a1");
  page = store_->ListArtifacts("acme", "j1", 2, page->next_token);
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->items.size(), 1u);
  EXPECT_EQ(page->items[0].artifact_id, "a0");
  EXPECT_THAT(store_->ListArtifacts("acme", "j2", 2, "")->items, IsEmpty());
  EXPECT_EQ(store_->ListArtifacts("acme", "j3", 2, "").status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(SqliteJobStoreTest, DeletingAJobNamesTheBlobsThatNothingElseUses) {
  JobRecord first = SampleJob("acme", "j1", 1);
  JobRecord second = SampleJob("acme", "j2", 2);
  second.layers[1].weight = SampleBlob("acme/weight-of-second", 1);
  second.layers[1].upload_staging = "acme/shared";
  first.layers[1].upload_staging = "acme/shared";
  Insert(first);
  Insert(second);
  ASSERT_TRUE(store_
                  ->UpdateJob("acme", "j1",
                              [](JobRecord&, std::vector<ArtifactRecord>& artifacts) {
                                artifacts.push_back({.artifact_id = "a",
                                                     .layer_id = "layer.0",
                                                     .blob = SampleBlob("acme/result", 1),
                                                     .create_time = At(1)});
                                return absl::OkStatus();
                              })
                  .ok());
  EXPECT_THAT(*store_->ReferencedBlobs(),
              UnorderedElementsAre("acme/shared", "acme/weight-layer.1", "acme/result",
                                   "acme/weight-of-second"));
  const auto freed = store_->DeleteJob("acme", "j1");
  ASSERT_TRUE(freed.ok()) << freed.status();
  EXPECT_THAT(*freed, UnorderedElementsAre("acme/weight-layer.1", "acme/result"));
  EXPECT_EQ(store_->GetJob("acme", "j1").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->GetArtifact("acme", "j1", "a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(*store_->ReferencedBlobs(),
              UnorderedElementsAre("acme/shared", "acme/weight-of-second"));
  EXPECT_EQ(store_->DeleteJob("acme", "j1").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SqliteJobStoreTest, StreamsAndTheirSequenceNumbersSurviveReopening) {
  Insert(SampleStatistic("acme", "s1", 1));
  ASSERT_TRUE(store_->CommitStream("acme", "s1", SampleStream("b", 1)).ok());
  ASSERT_TRUE(store_->CommitStream("acme", "s1", SampleStream("a", 4)).ok());
  ASSERT_TRUE(store_->CommitStream("acme", "s1", SampleStream("b", 2)).ok());
  Open();
  const auto read = store_->GetStatistic("acme", "s1");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->spec == SampleStatistic("acme", "s1", 1).spec);
  EXPECT_EQ(read->create_time, At(1));
  EXPECT_FALSE(read->sealed);
  ASSERT_EQ(read->streams.size(), 2u);
  ExpectEqual(read->streams[0], SampleStream("a", 4));
  ExpectEqual(read->streams[1], SampleStream("b", 2));
}

TEST_F(SqliteJobStoreTest, EveryKindOfStatisticRoundTrips) {
  for (const auto kind : {compute::MomentKind::kSecondMoment, compute::MomentKind::kWeighted,
                          compute::MomentKind::kCross, compute::MomentKind::kResidual}) {
    StatisticRecord statistic = SampleStatistic("acme", std::string(NameOf(kind)), 1);
    statistic.spec.kind = kind;
    statistic.spec.paired_cols = 17;
    Insert(statistic);
    const auto read = store_->GetStatistic("acme", NameOf(kind));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(read->spec == statistic.spec) << NameOf(kind);
  }
}

TEST_F(SqliteJobStoreTest, AStreamNeverGoesBack) {
  Insert(SampleStatistic("acme", "s1", 1));
  ASSERT_TRUE(store_->CommitStream("acme", "s1", SampleStream("a", 4)).ok());
  const absl::Status status = store_->CommitStream("acme", "s1", SampleStream("a", 3));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("seq 4 is durable"));
  EXPECT_EQ(store_->CommitStream("acme", "no", SampleStream("a", 5)).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(SqliteJobStoreTest, SealingKeepsTheMergedMomentAndDropsTheSnapshots) {
  Insert(SampleStatistic("acme", "s1", 1));
  ASSERT_TRUE(store_->CommitStream("acme", "s1", SampleStream("a", 4)).ok());
  const BlobRef moment = SampleBlob("acme/moment", 4096);
  ASSERT_TRUE(store_->SealStatistic("acme", "s1", 400, "00ff", moment).ok());
  const auto read = store_->GetStatistic("acme", "s1");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->sealed);
  EXPECT_EQ(read->tokens, 400);
  EXPECT_EQ(read->digest, "00ff");
  EXPECT_TRUE(read->moment == moment);
  ASSERT_EQ(read->streams.size(), 1u);
  EXPECT_EQ(read->streams[0].durable_seq, 4);
  EXPECT_TRUE(read->streams[0].snapshot == BlobRef{});
  EXPECT_THAT(*store_->ReferencedBlobs(), ElementsAre("acme/moment"));

  EXPECT_EQ(store_->CommitStream("acme", "s1", SampleStream("a", 5)).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_->SealStatistic("acme", "s1", 1, "11", moment).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_->SealStatistic("acme", "no", 1, "11", moment).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(SqliteJobStoreTest, StatisticsHaveUniqueIdsALimitAndPages) {
  Insert(SampleStatistic("acme", "s1", 1));
  EXPECT_EQ(store_->InsertStatistic(SampleStatistic("acme", "s1", 2), kNoLimit).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store_->InsertStatistic(SampleStatistic("acme", "s2", 2), 1).code(),
            absl::StatusCode::kResourceExhausted);
  StatisticRecord with_stream = SampleStatistic("acme", "s2", 2);
  with_stream.streams = {SampleStream("import", 1)};
  Insert(with_stream);
  auto page = store_->ListStatistics("acme", 1, "");
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->items.size(), 1u);
  EXPECT_EQ(page->items[0].statistic_id, "s2");
  ASSERT_EQ(page->items[0].streams.size(), 1u);
  ExpectEqual(page->items[0].streams[0], SampleStream("import", 1));
  page = store_->ListStatistics("acme", 1, page->next_token);
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->items.size(), 1u);
  EXPECT_EQ(page->items[0].statistic_id, "s1");
  EXPECT_EQ(page->next_token, "");
}

TEST_F(SqliteJobStoreTest, AStatisticInUseIsNotDeleted) {
  Insert(SampleStatistic("acme", "s-layer.1", 1));
  ASSERT_TRUE(store_->CommitStream("acme", "s-layer.1", SampleStream("a", 1)).ok());
  Insert(SampleJob("acme", "j1", 1));
  const auto refused = store_->DeleteStatistic("acme", "s-layer.1");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("tenants/acme/jobs/j1"));
  EXPECT_TRUE(store_->GetStatistic("acme", "s-layer.1").ok());

  ASSERT_TRUE(store_
                  ->UpdateJob("acme", "j1",
                              [](JobRecord& job, std::vector<ArtifactRecord>&) {
                                job.state = JobState::kCancelled;
                                return absl::OkStatus();
                              })
                  .ok());
  const auto freed = store_->DeleteStatistic("acme", "s-layer.1");
  ASSERT_TRUE(freed.ok()) << freed.status();
  EXPECT_THAT(*freed, ElementsAre("acme/snapshot-a-1"));
  EXPECT_EQ(store_->GetStatistic("acme", "s-layer.1").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->DeleteStatistic("acme", "s-layer.1").status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(SqliteJobStoreTest, AStatisticInUseByAnyFieldIsNotDeleted) {
  Insert(SampleJob("acme", "j1", 1));
  for (const std::string id : {"hat-layer.1", "cross-layer.1", "residual-layer.1"}) {
    Insert(SampleStatistic("acme", id, 1));
    const absl::Status refused = store_->DeleteStatistic("acme", id).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << id;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("tenants/acme/jobs/j1"));
    EXPECT_TRUE(store_->GetStatistic("acme", id).ok());
  }
  ASSERT_TRUE(store_->DeleteJob("acme", "j1").ok());
  for (const std::string id : {"hat-layer.1", "cross-layer.1", "residual-layer.1"}) {
    EXPECT_TRUE(store_->DeleteStatistic("acme", id).ok()) << id;
  }
}

TEST_F(SqliteJobStoreTest, AFullDatabaseRefusesAndGoesOnWhenThereIsRoom) {
  Open({.max_bytes = 400 << 10});
  absl::Status status;
  int inserted = 0;
  for (; inserted < 10'000 && status.ok(); ++inserted) {
    JobRecord job = SampleJob("acme", absl::StrCat("j", inserted), inserted);
    job.display_name = std::string(2000, 'x');
    status = store_->InsertJob(job, kNoLimit);
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  ASSERT_GT(inserted, 2);
  // The failed insert left nothing, and room that is made is used again.
  const std::string last = absl::StrCat("j", inserted - 1);
  EXPECT_EQ(store_->GetJob("acme", last).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(store_->DeleteJob("acme", "j0").ok());
  ASSERT_TRUE(store_->DeleteJob("acme", "j1").ok());
  EXPECT_TRUE(store_->InsertJob(SampleJob("acme", last, 1), kNoLimit).ok());
}

TEST_F(SqliteJobStoreTest, FilesThatAreNotOursAreRefused) {
  store_.reset();
  const std::string text = directory_.File("text.db");
  std::ofstream(text) << std::string(8192, 'x');
  EXPECT_EQ(OpenSqliteJobStore(text).status().code(), absl::StatusCode::kDataLoss);

  const std::string missing = directory_.File("no/such/directory.db");
  const absl::Status status = OpenSqliteJobStore(missing).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(missing));
}

// Overwrites the second half of the file, so that the schema stays: whatever is read then must be
// an error or right.
TEST_F(SqliteJobStoreTest, DamageIsReportedNotReturned) {
  for (int i = 0; i < 300; ++i) Insert(SampleJob("acme", absl::StrCat("j", i), i));
  store_.reset();  // writes the log back
  {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(0, std::ios::end);
    const auto size = static_cast<int64_t>(file.tellp());
    ASSERT_GT(size, 10 * 4096);
    const std::string garbage(4096, '\xee');
    for (int64_t page = size / 4096 * 3 / 4; page < size / 4096; ++page) {
      file.seekp(page * 4096);
      file.write(garbage.data(), static_cast<std::streamsize>(garbage.size()));
    }
  }
  Open();
  int damaged = 0;
  for (int i = 0; i < 300; ++i) {
    const auto job = store_->GetJob("acme", absl::StrCat("j", i));
    if (job.ok()) {
      ExpectEqual(*job, SampleJob("acme", absl::StrCat("j", i), i));
    } else {
      EXPECT_EQ(job.status().code(), absl::StatusCode::kDataLoss) << job.status();
      ++damaged;
    }
  }
  EXPECT_GT(damaged, 0);
}

TEST_F(SqliteJobStoreTest, ConcurrentWritersLoseNothing) {
  JobRecord job = SampleJob("acme", "j1", 1);
  job.finished_layers = 0;
  Insert(job);
  constexpr int kThreads = 4;
  constexpr int kUpdates = 25;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kUpdates; ++i) {
        const auto updated =
            store_->UpdateJob("acme", "j1", [](JobRecord& record, std::vector<ArtifactRecord>&) {
              ++record.finished_layers;
              return absl::OkStatus();
            });
        EXPECT_TRUE(updated.ok()) << updated.status();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_->GetJob("acme", "j1")->finished_layers, kThreads * kUpdates);
}

// A process that is killed between two commits, at a moment that the seed picks: what it had
// reported as stored is there afterwards, and nothing is half there.
TEST_F(SqliteJobStoreTest, AKilledProcessLosesNothingThatItAcknowledged) {
  store_.reset();
  std::mt19937 random(1);
  int first = 0;
  for (int round = 0; round < 5; ++round) {
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto store = OpenSqliteJobStore(path_);
      if (!store.ok()) ::_exit(1);
      for (int i = first;; ++i) {
        const JobRecord job = SampleJob("acme", absl::StrCat("j", i), i);
        if (!(*store)->InsertJob(job, kNoLimit).ok()) ::_exit(2);
        if (::write(pipe_ends[1], &i, sizeof(i)) != sizeof(i)) ::_exit(3);
      }
    }
    ::close(pipe_ends[1]);
    const int wanted = first + std::uniform_int_distribution<int>(1, 20)(random);
    int acknowledged = -1;
    while (acknowledged < wanted &&
           ::read(pipe_ends[0], &acknowledged, sizeof(acknowledged)) == sizeof(acknowledged)) {
    }
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    while (::read(pipe_ends[0], &acknowledged, sizeof(acknowledged)) == sizeof(acknowledged)) {
    }
    ::close(pipe_ends[0]);
    ASSERT_GE(acknowledged, wanted);

    Open();
    int stored = 0;
    for (;; ++stored) {
      const auto job = store_->GetJob("acme", absl::StrCat("j", stored));
      if (absl::IsNotFound(job.status())) break;
      ASSERT_TRUE(job.ok()) << job.status();
      ExpectEqual(*job, SampleJob("acme", absl::StrCat("j", stored), stored));
    }
    EXPECT_GT(stored, acknowledged);
    first = stored;
    store_.reset();
  }
}

}  // namespace
}  // namespace quantd::server
