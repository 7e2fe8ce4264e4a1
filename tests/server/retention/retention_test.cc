#include "server/retention/retention.h"

#include <atomic>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/local_blob_store.h"
#include "server/store/sqlite_job_store.h"
#include "tests/server/store/sample_records.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// Real stores; files are as old as the test, so `now` is what moves.
class RetentionTest : public ::testing::Test {
 protected:
  RetentionTest()
      : jobs_(OpenSqliteJobStore(directory_.File("quantd.db"), {}).value()),
        blobs_(OpenLocalBlobStore(directory_.File("blobs")).value()) {}

  RetentionActions Actions() {
    return {
        .delete_job =
            [this](const std::string& tenant, const std::string& job) {
              if (job == in_use_) return absl::FailedPreconditionError("in use");
              return jobs_->DeleteJob(tenant, job).status();
            },
        .delete_statistic =
            [this](const std::string& tenant, const std::string& statistic) {
              if (statistic == in_use_) return absl::FailedPreconditionError("in use");
              return jobs_->DeleteStatistic(tenant, statistic).status();
            },
        .discard_upload = [this](const std::string& tenant, const std::string& job,
                                 const std::string& layer) -> absl::StatusOr<int64_t> {
          discarded_.push_back(absl::StrCat(tenant, "/", job, "/", layer));
          return 1;
        },
        .collected =
            [this](absl::string_view kind, const std::string& tenant, const std::string& name) {
              collected_.push_back(absl::StrCat(kind, " ", tenant, "/", name));
            },
    };
  }

  void Sweep(const RetentionPolicy& policy, absl::Time now) {
    Retention retention(*jobs_, *blobs_, policy, Actions());
    const absl::Status swept = retention.Sweep(now);
    ASSERT_TRUE(swept.ok()) << swept;
  }

  // A job that ended `ago`, or has not.
  void AddJob(const std::string& id, std::optional<absl::Duration> ago,
              const std::string& statistic = "", const std::string& staging = "") {
    JobRecord job = SampleJob("acme", id, 0);
    job.layers.resize(1);
    job.layers[0].statistic_id = statistic;
    job.layers[0].upload_staging = staging;
    job.state = ago ? JobState::kSucceeded : JobState::kAccepting;
    job.end_time = ago ? std::optional(start_ - *ago) : std::nullopt;
    ASSERT_TRUE(jobs_->InsertJob(job, 100).ok());
  }

  void AddStatistic(const std::string& id, bool sealed) {
    StatisticRecord statistic = SampleStatistic("acme", id, 0);  // created in 2023
    const auto blob = blobs_->Put("acme", "a moment");
    ASSERT_TRUE(blob.ok());
    statistic.sealed = sealed;
    if (sealed) {
      statistic.moment = *blob;
    } else {
      statistic.streams = {SampleStream("a", 3)};
      statistic.streams[0].snapshot = *blob;
    }
    ASSERT_TRUE(jobs_->InsertStatistic(statistic, 100).ok());
  }

  std::vector<std::string> Jobs() {
    std::vector<std::string> ids;
    const auto page = jobs_->ListJobs("acme", 100, "");
    for (const JobRecord& job : page->items) ids.push_back(job.job_id);
    return ids;
  }
  std::vector<std::string> Statistics() {
    std::vector<std::string> ids;
    const auto page = jobs_->ListStatistics("acme", 100, "");
    for (const StatisticRecord& statistic : page->items) ids.push_back(statistic.statistic_id);
    return ids;
  }

  const absl::Time start_ = absl::Now();
  const TempDirectory directory_;
  std::unique_ptr<JobStore> jobs_;
  std::unique_ptr<BlobStore> blobs_;
  std::string in_use_;
  std::vector<std::string> collected_;
  std::vector<std::string> discarded_;
};

TEST_F(RetentionTest, KeepsEverythingByDefault) {
  AddJob("old", absl::Hours(100'000));
  AddStatistic("unused", true);
  Sweep({}, start_ + absl::Hours(1'000'000));
  EXPECT_THAT(Jobs(), ElementsAre("old"));
  EXPECT_THAT(Statistics(), ElementsAre("unused"));
  EXPECT_THAT(collected_, IsEmpty());
}

TEST_F(RetentionTest, DeletesEndedJobsOnceTheyAreOldEnough) {
  AddJob("older", absl::Hours(3));
  AddJob("younger", absl::Hours(1));
  AddJob("unfinished", std::nullopt);
  const RetentionPolicy policy = {.ended_jobs = absl::Hours(2)};
  Sweep(policy, start_);
  EXPECT_THAT(Jobs(), UnorderedElementsAre("younger", "unfinished"));
  EXPECT_THAT(collected_, ElementsAre("job acme/older"));
  Sweep(policy, start_ + absl::Hours(1) - absl::Seconds(1));
  EXPECT_THAT(Jobs(), UnorderedElementsAre("younger", "unfinished"));
  Sweep(policy, start_ + absl::Hours(1) + absl::Seconds(1));
  EXPECT_THAT(Jobs(), ElementsAre("unfinished"));
  Sweep(policy, start_ + absl::Hours(100'000));
  EXPECT_THAT(Jobs(), ElementsAre("unfinished"));
}

TEST_F(RetentionTest, KeepsStatisticsThatAStoredJobRefersTo) {
  AddStatistic("used", true);
  AddStatistic("unused", true);
  AddStatistic("open", false);
  AddJob("job", absl::Hours(1), "used");
  const RetentionPolicy policy = {.unused_statistics = absl::Hours(2)};
  Sweep(policy, start_ + absl::Hours(1));  // created long ago, but sealed just now
  EXPECT_THAT(collected_, IsEmpty());
  Sweep(policy, start_ + absl::Hours(3));
  EXPECT_THAT(Statistics(), UnorderedElementsAre("used", "open"));
  // With the job goes what it used.
  Sweep({.ended_jobs = absl::Hours(2), .unused_statistics = absl::Hours(2)},
        start_ + absl::Hours(3));
  EXPECT_THAT(Statistics(), ElementsAre("open"));
}

TEST_F(RetentionTest, DeletesStatisticsThatNobodySealed) {
  AddStatistic("sealed", true);
  AddStatistic("abandoned", false);
  const RetentionPolicy policy = {.abandoned_statistics = absl::Hours(2)};
  Sweep(policy, start_ + absl::Hours(1));
  EXPECT_THAT(collected_, IsEmpty());
  Sweep(policy, start_ + absl::Hours(3));
  EXPECT_THAT(collected_, ElementsAre("statistic acme/abandoned"));
  EXPECT_THAT(Statistics(), ElementsAre("sealed"));
}

TEST_F(RetentionTest, WhatIsInUseWaitsAndHoldsUpNothing) {
  in_use_ = "a";
  AddJob("a", absl::Hours(3));
  AddJob("b", absl::Hours(3));
  Sweep({.ended_jobs = absl::Hours(2)}, start_);
  EXPECT_THAT(Jobs(), ElementsAre("a"));
  EXPECT_THAT(collected_, ElementsAre("job acme/b"));
  in_use_.clear();
  Sweep({.ended_jobs = absl::Hours(2)}, start_);
  EXPECT_THAT(Jobs(), IsEmpty());
}

TEST_F(RetentionTest, GivesUpTheBytesOfAbandonedUploads) {
  const auto staged = [this](absl::string_view text) {
    auto writer = blobs_->NewBlob("acme").value();
    const absl::Status appended =
        writer->Append({reinterpret_cast<const std::byte*>(text.data()), text.size()});
    EXPECT_TRUE(appended.ok());
    return writer->name();
  };
  AddJob("abandoned", std::nullopt, "", staged("bytes"));
  AddJob("nothing-stored", std::nullopt, "", staged(""));
  AddJob("ended", absl::Hours(1), "", staged("bytes"));
  const RetentionPolicy policy = {.abandoned_uploads = absl::Hours(2)};
  Sweep(policy, start_ + absl::Hours(1));
  EXPECT_THAT(discarded_, IsEmpty());
  Sweep(policy, start_ + absl::Hours(3));
  EXPECT_THAT(discarded_, ElementsAre("acme/abandoned/layer.0"));
  EXPECT_THAT(collected_, ElementsAre("upload acme/abandoned/layer.0"));
}

TEST_F(RetentionTest, SweepsByItsClock) {
  AddJob("old", absl::Hours(3));
  std::atomic<int> errors{0};
  std::atomic<bool> swept{false};
  RetentionActions actions = Actions();
  actions.collected = [&](absl::string_view, const std::string&, const std::string&) {
    swept = true;
  };
  std::atomic<int64_t> hours{0};
  Retention retention(*jobs_, *blobs_, {.ended_jobs = absl::Hours(5)}, std::move(actions));
  retention.Start(
      absl::Milliseconds(1), [&] { return start_ + absl::Hours(hours++); },
      [&](const absl::Status&) { ++errors; });
  while (!swept) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_GE(hours.load(), 3);
  EXPECT_EQ(errors.load(), 0);
}

}  // namespace
}  // namespace quantd::server
