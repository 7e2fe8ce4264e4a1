#include <sqlite3.h>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/sqlite_job_store.h"
#include "tests/server/store/faulty_vfs.h"
#include "tests/server/store/sample_records.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

using ::testing::HasSubstr;

constexpr int kNoLimit = 1'000'000;

class SqliteFaultsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    FaultyVfs::Install();
    Heal();
    Open();
  }
  void TearDown() override {
    Heal();
    store_.reset();
  }

  static void Heal() {
    FaultyVfs::syncs_until_failure = -1;
    FaultyVfs::disk_full = false;
  }

  void Open() {
    store_.reset();
    auto store = OpenSqliteJobStore(path_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  void Execute(const char* sql) {
    store_.reset();
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &database), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(database, sql, nullptr, nullptr, nullptr), SQLITE_OK)
        << sqlite3_errmsg(database);
    sqlite3_close(database);
  }

  TempDirectory directory_;
  std::string path_ = directory_.File("quantd.db");
  std::unique_ptr<JobStore> store_;
};

TEST_F(SqliteFaultsTest, EveryCommitIsSynced) {
  const int before = FaultyVfs::syncs;
  ASSERT_TRUE(store_->InsertJob(SampleJob("acme", "j1", 1), kNoLimit).ok());
  const int after = FaultyVfs::syncs;
  EXPECT_GT(after, before);
  ASSERT_TRUE(store_->SetUploadCommitted("acme", "j1", "layer.0", 5).ok());
  EXPECT_GT(FaultyVfs::syncs, after);
}

TEST_F(SqliteFaultsTest, AFailedSyncIsNeverAcknowledgedAndStopsTheStore) {
  ASSERT_TRUE(store_->InsertJob(SampleJob("acme", "j1", 1), kNoLimit).ok());
  FaultyVfs::syncs_until_failure = 1;
  const absl::Status failed = store_->InsertJob(SampleJob("acme", "j2", 2), kNoLimit);
  EXPECT_EQ(failed.code(), absl::StatusCode::kInternal) << failed;
  Heal();  // the disk may look well again: what it has dropped is unknown all the same
  EXPECT_EQ(store_->InsertJob(SampleJob("acme", "j3", 3), kNoLimit).code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(store_->GetJob("acme", "j1").status().code(), absl::StatusCode::kInternal);
  Open();
  EXPECT_TRUE(store_->GetJob("acme", "j1").ok());
  EXPECT_TRUE(store_->InsertJob(SampleJob("acme", "j3", 3), kNoLimit).ok());
}

// The log is written back into the database file now and then; a failed sync there is no failure of
// the commit that happened to trigger it, but must stop the store.
TEST_F(SqliteFaultsTest, AFailedSyncOfACheckpointStopsTheStore) {
  absl::Status status;
  int acknowledged = 0;
  for (; acknowledged < 5000; ++acknowledged) {
    FaultyVfs::syncs_until_failure = 2;  // one for the commit; a checkpoint takes more
    status = store_->InsertJob(SampleJob("acme", absl::StrCat("j", acknowledged), 1), kNoLimit);
    if (!status.ok()) break;
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("restart"));
  Heal();
  Open();
  ASSERT_GT(acknowledged, 0);
  for (int i = 0; i < acknowledged; ++i) {
    EXPECT_TRUE(store_->GetJob("acme", absl::StrCat("j", i)).ok()) << i;
  }
}

TEST_F(SqliteFaultsTest, AFullDiskIsRefusedAndWorkGoesOnAfterwards) {
  ASSERT_TRUE(store_->InsertJob(SampleJob("acme", "j1", 1), kNoLimit).ok());
  FaultyVfs::disk_full = true;
  const absl::Status status = store_->InsertJob(SampleJob("acme", "j2", 2), kNoLimit);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(store_->GetJob("acme", "j1").ok());
  EXPECT_EQ(store_->SetUploadCommitted("acme", "j1", "layer.0", 5).code(),
            absl::StatusCode::kResourceExhausted);
  Heal();
  EXPECT_TRUE(store_->InsertJob(SampleJob("acme", "j2", 2), kNoLimit).ok());
}

TEST_F(SqliteFaultsTest, AnotherProgramsDatabaseIsRefused) {
  store_.reset();
  path_ = directory_.File("other.db");
  Execute("CREATE TABLE songs (name TEXT)");
  EXPECT_EQ(OpenSqliteJobStore(path_).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(SqliteFaultsTest, ANewerVersionIsRefused) {
  Execute("PRAGMA user_version = 99");
  const absl::Status status = OpenSqliteJobStore(path_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("schema version 99"));
}

// Version 1 had second moments alone and one statistic a layer.
TEST_F(SqliteFaultsTest, AnOlderVersionIsBroughtUpToDate) {
  ASSERT_TRUE(store_->InsertJob(SampleJob("acme", "j1", 1), kNoLimit).ok());
  ASSERT_TRUE(store_->InsertStatistic(SampleStatistic("acme", "s1", 1), kNoLimit).ok());
  store_.reset();
  Execute(
      "DROP INDEX layers_by_second_moment_hat; DROP INDEX layers_by_cross_moment;"
      "DROP INDEX layers_by_residual_moment;"
      "ALTER TABLE layers DROP COLUMN second_moment_hat_id;"
      "ALTER TABLE layers DROP COLUMN cross_moment_id;"
      "ALTER TABLE layers DROP COLUMN weight_of;"
      "ALTER TABLE layers DROP COLUMN residual_moment_id;"
      "DROP TABLE device_use; ALTER TABLE jobs DROP COLUMN priority;"
      "ALTER TABLE jobs DROP COLUMN deadline_us;"
      "ALTER TABLE statistics DROP COLUMN kind; ALTER TABLE statistics DROP COLUMN paired_cols;"
      "PRAGMA user_version = 1");
  for (int opened = 0; opened < 2; ++opened) {
    auto store = OpenSqliteJobStore(path_);
    ASSERT_TRUE(store.ok()) << store.status();
    JobRecord expected = SampleJob("acme", "j1", 1);
    expected.priority = Priority::kNormal;
    expected.deadline.reset();
    expected.layers[1].second_moment_hat_id.clear();
    expected.layers[1].cross_moment_id.clear();
    expected.layers[1].residual_moment_id.clear();
    const auto job = (*store)->GetJob("acme", "j1");
    ASSERT_TRUE(job.ok()) << job.status();
    ExpectEqual(*job, expected);
    const auto statistic = (*store)->GetStatistic("acme", "s1");
    ASSERT_TRUE(statistic.ok()) << statistic.status();
    EXPECT_TRUE(statistic->spec == SampleStatistic("acme", "s1", 1).spec);
    if (opened == 0) {
      ASSERT_TRUE((*store)->InsertJob(SampleJob("acme", "j2", 2), kNoLimit).ok());
    } else {
      ExpectEqual(*(*store)->GetJob("acme", "j2"), SampleJob("acme", "j2", 2));
    }
  }
}

TEST_F(SqliteFaultsTest, ValuesThatMakeNoSenseAreDataLossAndNameTheRecord) {
  const char* const damages[] = {
      "UPDATE jobs SET recipe = '{'",
      "UPDATE jobs SET state = 'dancing'",
      "UPDATE jobs SET priority = 'dancing'",
      "UPDATE layers SET dtype = 'F3' WHERE position = 1",
      "UPDATE layers SET state = 'dancing' WHERE position = 1",
      "UPDATE layers SET recipe = '[]' WHERE position = 1",
      "UPDATE layers SET error = '{\"code\": \"x\"}' WHERE position = 1",
      "UPDATE layers SET error = '{\"code\": 0, \"message\": \"\"}' WHERE position = 1",
      "UPDATE layers SET error = '{\"code\": 5, \"message\": \"\", \"details\": {\"x\": 1}}'",
  };
  for (const char* damage : damages) {
    SCOPED_TRACE(damage);
    Open();
    ASSERT_TRUE(store_->InsertJob(SampleJob("acme", "j1", 1), kNoLimit).ok());
    Execute(damage);
    Open();
    const absl::Status status = store_->GetJob("acme", "j1").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("j1"));
    ASSERT_TRUE(store_->DeleteJob("acme", "j1").ok());
  }

  ASSERT_TRUE(store_->InsertStatistic(SampleStatistic("acme", "s1", 1), kNoLimit).ok());
  ASSERT_TRUE(store_->CommitStream("acme", "s1", SampleStream("a", 1)).ok());
  for (const char* damage :
       {"UPDATE statistic_streams SET recent_crcs = x'0102'",
        "UPDATE statistic_streams SET dtype = 'F3'", "UPDATE statistics SET layout = 'round'"}) {
    SCOPED_TRACE(damage);
    Execute(damage);
    Open();
    const absl::Status status = store_->GetStatistic("acme", "s1").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("s1"));
  }
}

}  // namespace
}  // namespace quantd::server
