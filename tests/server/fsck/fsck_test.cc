#include "server/fsck/fsck.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/second_moment/second_moment.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/fsck/check_records.h"
#include "server/store/data_directory.h"
#include "server/store/local_blob_store.h"
#include "server/store/sqlite.h"
#include "server/store/sqlite_job_store.h"
#include "tests/server/store/sample_records.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A data directory as a server leaves it: a finished job, one that waits for half of its weight, a
// sealed statistic and an open one.
class FsckTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto blobs = OpenLocalBlobStore(root_ + "/blobs").value();
    auto jobs = OpenSqliteJobStore(root_ + "/quantd.db", {}).value();
    const compute::SecondMoment moment = Moment();

    JobRecord done = Job("done", LayerState::kSucceeded);
    weight_ = blobs->Put("acme", std::string(32 * 64 * 4, 'w')).value();
    done.layers[0].weight = weight_;
    done.layers[0].upload_committed = weight_.size;
    done.state = JobState::kRunning;
    done.layers[0].state = LayerState::kRunning;
    ASSERT_TRUE(jobs->InsertJob(done, 10).ok());
    result_ = blobs->Put("acme", "a result").value();
    report_ = blobs->Put("acme", "a report").value();
    ASSERT_TRUE(jobs->UpdateJob("acme", "done",
                                [&](JobRecord& job, auto& artifacts) {
                                  job.layers[0].state = LayerState::kSucceeded;
                                  job.state = JobState::kSucceeded;
                                  job.finished_layers = 1;
                                  job.end_time = At(9);
                                  artifacts = {{"w.safetensors", "w", result_, At(9)},
                                               {"w.report.json", "w", report_, At(9)}};
                                  return absl::OkStatus();
                                })
                    .ok());

    JobRecord waiting = Job("waiting", LayerState::kWaiting);
    auto writer = blobs->NewBlob("acme").value();
    const std::string half(100, 'h');
    ASSERT_TRUE(writer->Append({reinterpret_cast<const std::byte*>(half.data()), 100}).ok());
    ASSERT_TRUE(writer->Sync().ok());
    staging_ = writer->name();
    waiting.layers[0].upload_staging = staging_;
    waiting.layers[0].upload_committed = 80;
    ASSERT_TRUE(jobs->InsertJob(waiting, 10).ok());

    StatisticRecord sealed = Statistic("sealed", moment);
    sealed.sealed = true;
    sealed.tokens = moment.tokens();
    sealed.digest = moment.DigestHex();
    moment_ = blobs->Put("acme", moment.Serialize()).value();
    sealed.moment = moment_;
    ASSERT_TRUE(jobs->InsertStatistic(sealed, 10).ok());

    StatisticRecord open = Statistic("open", moment);
    snapshot_ = blobs->Put("acme", moment.Serialize()).value();
    open.streams = {{.stream_id = "a",
                     .dtype = compute::DType::kF32,
                     .durable_seq = 2,
                     .tokens = moment.tokens(),
                     .snapshot = snapshot_,
                     .recent_crcs = {1, 2}}};
    ASSERT_TRUE(jobs->InsertStatistic(open, 10).ok());
  }

  static compute::SecondMoment Moment() {
    const std::vector<double> matrix = {2.0, 0.0, 0.0, 2.0};
    return compute::SecondMoment::FromMatrix({.cols = 2, .sample_rows = 0}, 7, false, matrix)
        .value();
  }

  static JobRecord Job(const std::string& id, LayerState state) {
    JobRecord job = SampleJob("acme", id, 0);
    job.layers.resize(1);
    LayerRecord& layer = job.layers[0];
    layer.layer_id = "w";
    layer.rows = 32;
    layer.cols = 64;
    layer.dtype = compute::DType::kF32;
    layer.state = state;
    layer.upload_committed = 0;
    job.state = JobState::kAccepting;
    job.finished_layers = 0;
    job.end_time.reset();
    return job;
  }

  static StatisticRecord Statistic(const std::string& id, const compute::SecondMoment& moment) {
    StatisticRecord statistic = SampleStatistic("acme", id, 0);
    statistic.spec = moment.spec();
    return statistic;
  }

  std::string FileOf(const std::string& blob, bool staging = false) {
    return BlobFile(root_ + "/blobs", blob, staging).value();
  }
  static void Overwrite(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }
  // With the sqlite3 shell's means: what no server would write.
  void Sql(const char* statement) {
    auto database = sqlite::Database::Open(root_ + "/quantd.db", 0);
    ASSERT_TRUE(database.ok());
    const absl::Status done = (*database)->Execute(statement);
    ASSERT_TRUE(done.ok()) << done;
  }

  FsckReport Check(bool repair = false) {
    auto report = CheckDataDirectory(root_, repair);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.value_or(FsckReport{});
  }
  std::vector<std::string> Kinds(bool repair = false) {
    std::vector<std::string> kinds;
    for (const Finding& finding : Check(repair).findings) kinds.push_back(finding.kind);
    return kinds;
  }
  // Finds `kind` alone, repairs it, and finds nothing more.
  void ExpectRepaired(const std::string& kind, const std::string& subject) {
    const FsckReport found = Check();
    ASSERT_EQ(found.findings.size(), 1u);
    EXPECT_EQ(found.findings[0].kind, kind);
    EXPECT_THAT(found.findings[0].subject, HasSubstr(subject));
    EXPECT_FALSE(found.findings[0].repaired);
    EXPECT_FALSE(found.findings[0].remedy.empty());
    EXPECT_THAT(Kinds(), ElementsAre(kind));  // looking changes nothing
    const FsckReport repaired = Check(true);
    ASSERT_EQ(repaired.findings.size(), 1u);
    EXPECT_TRUE(repaired.findings[0].repaired);
    EXPECT_THAT(Kinds(), IsEmpty());
  }
  std::unique_ptr<JobStore> Jobs() { return OpenSqliteJobStore(root_ + "/quantd.db", {}).value(); }
  bool InQuarantine(const std::string& blob, const std::string& suffix = "") {
    std::string name = blob;
    std::replace(name.begin(), name.end(), '/', '_');
    return std::filesystem::exists(absl::StrCat(root_, "/quarantine/", name, suffix));
  }

  const TempDirectory directory_;
  const std::string root_ = directory_.path();
  BlobRef weight_, result_, report_, moment_, snapshot_;
  std::string staging_;
};

TEST_F(FsckTest, FindsNothingWrong) {
  const FsckReport report = Check();
  EXPECT_THAT(report.findings, IsEmpty());
  EXPECT_EQ(report.jobs, 2);
  EXPECT_EQ(report.statistics, 2);
  EXPECT_EQ(report.blobs, 5);
  EXPECT_EQ(report.bytes,
            weight_.size + result_.size + report_.size + moment_.size + snapshot_.size);
}

TEST_F(FsckTest, RefusesWhatIsNotThereOrInUse) {
  EXPECT_EQ(CheckDataDirectory(root_ + "/nowhere", true).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(std::filesystem::exists(root_ + "/nowhere"));
  const auto held = DataDirectory::Open(root_);
  ASSERT_TRUE(held.ok());
  EXPECT_EQ(CheckDataDirectory(root_, false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(FsckTest, RemovesWhatNothingRefersTo) {
  const auto stray = OpenLocalBlobStore(root_ + "/blobs").value()->Put("acme", "stray").value();
  const FsckReport found = Check();
  ASSERT_EQ(found.findings.size(), 1u);
  EXPECT_TRUE(found.findings[0].garbage);
  EXPECT_TRUE(std::filesystem::exists(FileOf(stray.name)));
  ExpectRepaired("ORPHAN_BLOB", stray.name);
  EXPECT_FALSE(std::filesystem::exists(FileOf(stray.name)));
}

TEST_F(FsckTest, DamagedResultFailsItsLayer) {
  Overwrite(FileOf(result_.name), "a resulT");
  ExpectRepaired("BLOB_DAMAGED", "tenants/acme/jobs/done/artifacts/w.safetensors");
  EXPECT_TRUE(InQuarantine(result_.name));
  EXPECT_TRUE(InQuarantine(report_.name));  // whole, but nothing is thrown away
  const JobRecord job = Jobs()->GetJob("acme", "done").value();
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.layers[0].state, LayerState::kFailed);
  EXPECT_TRUE(absl::IsDataLoss(job.layers[0].error));
  EXPECT_EQ(job.end_time, At(9));
}

TEST_F(FsckTest, MissingWeightOfAFinishedLayerKeepsItsResult) {
  std::filesystem::remove(FileOf(weight_.name));
  ExpectRepaired("BLOB_DAMAGED", "tenants/acme/jobs/done/layers/w weight");
  const JobRecord job = Jobs()->GetJob("acme", "done").value();
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_TRUE(job.layers[0].weight.name.empty());
}

TEST_F(FsckTest, DamagedWeightOfAnUnfinishedLayerIsUploadedAgain) {
  Sql("DELETE FROM artifacts; UPDATE layers SET state = 'queued' WHERE job_id = 'done';"
      "UPDATE jobs SET state = 'queued', finished_layers = 0, end_time_us = NULL"
      " WHERE job_id = 'done'");
  ASSERT_EQ(Kinds(true), std::vector<std::string>(2, "ORPHAN_BLOB"));  // the two artifacts
  std::filesystem::resize_file(FileOf(weight_.name), 1000);
  ExpectRepaired("BLOB_DAMAGED", "tenants/acme/jobs/done/layers/w weight");
  EXPECT_TRUE(InQuarantine(weight_.name));
  const JobRecord job = Jobs()->GetJob("acme", "done").value();
  EXPECT_EQ(job.state, JobState::kAccepting);
  EXPECT_EQ(job.layers[0].upload_committed, 0);
}

TEST_F(FsckTest, ShortStagingFileStartsOver) {
  std::filesystem::resize_file(FileOf(staging_, true), 79);
  ExpectRepaired("STAGING_DAMAGED", "tenants/acme/jobs/waiting/layers/w");
  EXPECT_TRUE(InQuarantine(staging_, ".partial"));
  const JobRecord job = Jobs()->GetJob("acme", "waiting").value();
  EXPECT_EQ(job.layers[0].upload_committed, 0);
  EXPECT_TRUE(job.layers[0].upload_staging.empty());
}

TEST_F(FsckTest, RenamedButNotRecordedIsNoDamage) {
  std::filesystem::rename(FileOf(staging_, true), FileOf(staging_));
  EXPECT_THAT(Kinds(), IsEmpty());
}

TEST_F(FsckTest, DamagedSumOpensTheStatisticAgain) {
  Overwrite(FileOf(moment_.name), std::string(static_cast<size_t>(moment_.size), 'x'));
  ExpectRepaired("BLOB_DAMAGED", "tenants/acme/statistics/sealed");
  EXPECT_TRUE(InQuarantine(moment_.name));
  const StatisticRecord statistic = Jobs()->GetStatistic("acme", "sealed").value();
  EXPECT_FALSE(statistic.sealed);
  EXPECT_EQ(statistic.tokens, 0);
  EXPECT_THAT(statistic.streams, IsEmpty());
}

TEST_F(FsckTest, SnapshotOfOtherTokensThanAreDurable) {
  Sql("UPDATE statistic_streams SET tokens = 6");
  ExpectRepaired("STATISTIC_INCONSISTENT", "tenants/acme/statistics/open stream a");
  EXPECT_TRUE(InQuarantine(snapshot_.name));
  EXPECT_THAT(Jobs()->GetStatistic("acme", "open")->streams, IsEmpty());
}

TEST_F(FsckTest, StateThatDoesNotFollowFromTheLayers) {
  Sql("UPDATE jobs SET state = 'running', end_time_us = NULL WHERE job_id = 'done'");
  const FsckReport found = Check();
  ASSERT_FALSE(found.findings.empty());
  EXPECT_EQ(found.findings[0].kind, "JOB_INCONSISTENT");
  Check(true);
  EXPECT_THAT(Kinds(), IsEmpty());
  EXPECT_EQ(Jobs()->GetJob("acme", "done")->state, JobState::kSucceeded);
}

TEST_F(FsckTest, BlobOfAnotherTenant) {
  Sql("UPDATE artifacts SET blob_name = 'other' || substr(blob_name, 5)"
      " WHERE artifact_id = 'w.report.json'");
  const std::vector<std::string> kinds = Kinds();
  EXPECT_THAT(kinds, ::testing::Contains("BLOB_DAMAGED"));
}

TEST_F(FsckTest, SucceededWithoutAResultIsReportedAndNotMended) {
  Sql("DELETE FROM artifacts WHERE artifact_id = 'w.report.json'");
  const FsckReport report = Check(true);
  ASSERT_FALSE(report.findings.empty());
  EXPECT_EQ(report.findings[0].kind, "JOB_INCONSISTENT");
  EXPECT_THAT(report.findings[0].what, HasSubstr("succeeded without w.report.json"));
  EXPECT_FALSE(report.findings[0].repaired);
}

TEST_F(FsckTest, NothingIsRemovedWhileTheDatabaseIsDamaged) {
  const auto stray = OpenLocalBlobStore(root_ + "/blobs").value()->Put("acme", "stray").value();
  const std::string path = root_ + "/quantd.db";
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
  for (int64_t at = 8192; at + 4096 <= size; at += 4096) {
    file.seekp(at + 100);
    file << std::string(3000, '\xee');
  }
  file.close();
  const FsckReport report = Check(true);
  ASSERT_FALSE(report.findings.empty());
  for (const Finding& finding : report.findings) {
    EXPECT_EQ(finding.kind, "DATABASE_DAMAGED");
    EXPECT_FALSE(finding.repaired);
  }
  EXPECT_TRUE(std::filesystem::exists(FileOf(stray.name)));
}

TEST(CheckRecordsTest, LayersThatRunNeedTheirWeight) {
  JobRecord job = SampleJob("acme", "j", 0);
  job.layers.resize(1);
  job.layers[0].state = LayerState::kRunning;
  job.layers[0].upload_committed = 0;
  job.state = JobState::kRunning;
  job.end_time.reset();
  job.finished_layers = 0;
  EXPECT_THAT(CheckJob(job, {}), ElementsAre("layer layer.0 runs without its weight"));
}

}  // namespace
}  // namespace quantd::server
