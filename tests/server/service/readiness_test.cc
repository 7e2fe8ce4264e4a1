#include "server/service/readiness.h"

#include <map>
#include <string>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/store/sqlite_job_store.h"
#include "server/store/sync_failures.h"
#include "tests/server/store/faulty_vfs.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

class FakeHealth final : public grpc::HealthCheckServiceInterface {
 public:
  void SetServingStatus(const std::string& service, bool serving) override {
    absl::MutexLock lock(&mutex_);
    serving_[service] = serving;
  }
  void SetServingStatus(bool) override { ADD_FAILURE() << "names are set one by one"; }

  std::map<std::string, bool> serving() const {
    absl::MutexLock lock(&mutex_);
    return serving_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::map<std::string, bool> serving_;
};

class ReadinessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    FaultyVfs::Install();
    FaultyVfs::syncs_until_failure = -1;
    auto store = OpenSqliteJobStore(directory_.File("quantd.db"));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  void TearDown() override { FaultyVfs::syncs_until_failure = -1; }

  // A change whose sync fails: what reached the disk is unknown from then on.
  void BreakStore() {
    FaultyVfs::syncs_until_failure = 1;
    StatisticRecord record;
    record.tenant = "acme";
    record.statistic_id = "calibration";
    record.spec.cols = 4;
    EXPECT_FALSE(store_->InsertStatistic(record, 10).ok());
  }

  bool Shows(const std::string& line) { return absl::StrContains(metrics_.Text(), line); }

  TempDirectory directory_;
  std::unique_ptr<JobStore> store_;
  Metrics metrics_{{}};
  FakeHealth health_;
};

TEST_F(ReadinessTest, NotReadyBeforeTheStart) {
  Readiness readiness(*store_, metrics_);
  EXPECT_EQ(readiness.Check().message(), "starting");
  EXPECT_TRUE(Shows("quantd_ready 0") && Shows("quantd_serving 0"));
}

TEST_F(ReadinessTest, EveryServiceServesAfterTheStart) {
  Readiness readiness(*store_, metrics_);
  readiness.Start(health_);
  EXPECT_TRUE(readiness.Check().ok());
  EXPECT_TRUE(Shows("quantd_ready 1") && Shows("quantd_serving 1"));
  const auto serving = health_.serving();
  EXPECT_EQ(serving.size(), 7u);
  for (const auto& [service, serves] : serving) EXPECT_TRUE(serves) << service;
}

TEST_F(ReadinessTest, AFailingStoreStopsTheServicesThatKeepSomething) {
  Readiness readiness(*store_, metrics_);
  readiness.Start(health_);
  const int64_t before = SyncFailures();
  BreakStore();
  EXPECT_EQ(SyncFailures(), before + 1);
  EXPECT_EQ(readiness.Check().message(), "the store fails");
  EXPECT_TRUE(Shows("quantd_ready 0") && Shows("quantd_serving 1"));
  const std::map<std::string, bool> expected = {
      {"", false},
      {"quantd.v1.Jobs", false},
      {"quantd.v1.Weights", false},
      {"quantd.v1.Calibration", false},
      {"quantd.v1.Results", false},
      {"quantd.v1.Quantize", true},
      {"quantd.v1.Server", true},
  };
  EXPECT_EQ(health_.serving(), expected);
}

TEST_F(ReadinessTest, AFailureIsSeenWithoutAnybodyAsking) {
  Readiness readiness(*store_, metrics_);
  readiness.Start(health_, absl::Milliseconds(1));
  BreakStore();
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (health_.serving()[""] && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_FALSE(health_.serving()[""]);
}

TEST_F(ReadinessTest, DrainingIsForGood) {
  Readiness readiness(*store_, metrics_);
  readiness.Start(health_, absl::Milliseconds(1));
  readiness.Drain();
  EXPECT_EQ(readiness.Check().message(), "draining");
  EXPECT_TRUE(Shows("quantd_ready 0") && Shows("quantd_serving 0"));
  for (const auto& [service, serves] : health_.serving()) EXPECT_FALSE(serves) << service;
  readiness.Drain();
}

}  // namespace
}  // namespace quantd::server
