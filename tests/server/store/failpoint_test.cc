#include "server/store/failpoint.h"

#include <algorithm>
#include <csignal>
#include <string>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/local_blob_store.h"
#include "server/store/sync_failures.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FailpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!kHasFailpoints) GTEST_SKIP() << "built without QUANTD_FAILPOINTS";
  }
  void TearDown() override {
    if (kHasFailpoints) {
      ASSERT_TRUE(ArmFailpoints("").ok());
    }
  }
};

TEST(WithoutFailpointsTest, HaveNoNamesAndCannotBeArmed) {
  if (kHasFailpoints) GTEST_SKIP() << "built with QUANTD_FAILPOINTS";
  EXPECT_THAT(FailpointNames(), IsEmpty());
  EXPECT_EQ(ArmFailpoints("blob.append=eio").code(), absl::StatusCode::kUnimplemented);
  EXPECT_TRUE(Failpoint("blob.append").ok());
}

TEST_F(FailpointTest, NothingHappensUntilArmed) {
  EXPECT_FALSE(FailpointsArmed());
  EXPECT_TRUE(Failpoint("blob.append").ok());
}

TEST_F(FailpointTest, OperationsHaveTwo) {
  EXPECT_THAT(FailpointNames(), Contains("blob.append"));
  EXPECT_THAT(FailpointNames(), Contains("blob.append.done"));
}

TEST_F(FailpointTest, FailsAtTheHitsThatAreNamed) {
  ASSERT_TRUE(ArmFailpoints("blob.append=enospc@2-3; blob.sync=eio@2+").ok());
  for (const bool fails : {false, true, true, false, false}) {
    EXPECT_EQ(absl::IsResourceExhausted(Failpoint("blob.append")), fails);
  }
  for (const bool fails : {false, true, true}) {
    EXPECT_EQ(absl::IsUnknown(Failpoint("blob.sync")), fails);
  }
  EXPECT_TRUE(Failpoint("blob.delete").ok());
}

TEST_F(FailpointTest, DrawsTheSameHitsFromTheSameSeed) {
  const auto draw = [](const char* rule) {
    EXPECT_TRUE(ArmFailpoints(rule).ok());
    std::string hits;
    for (int i = 0; i < 200; ++i) hits += Failpoint("blob.append").ok() ? '.' : 'x';
    return hits;
  };
  const std::string first = draw("blob.append=eio@0.2%7");
  EXPECT_EQ(draw("blob.append=eio@0.2%7"), first);
  EXPECT_NE(draw("blob.append=eio@0.2%8"), first);
  const auto failures = std::count(first.begin(), first.end(), 'x');
  EXPECT_GT(failures, 15);
  EXPECT_LT(failures, 80);
}

TEST_F(FailpointTest, AnErrorAfterwardsIsOfAnOperationThatTookPlace) {
  ASSERT_TRUE(ArmFailpoints("blob.append.done=eio").ok());
  bool ran = false;
  EXPECT_FALSE(AtFailpoint("blob.append", [&] {
                 ran = true;
                 return absl::OkStatus();
               }).ok());
  EXPECT_TRUE(ran);
  ASSERT_TRUE(ArmFailpoints("blob.append=eio").ok());
  ran = false;
  EXPECT_FALSE(AtFailpoint("blob.append", [&] {
                 ran = true;
                 return absl::OkStatus();
               }).ok());
  EXPECT_FALSE(ran);
}

TEST_F(FailpointTest, WaitsAndCrashes) {
  ASSERT_TRUE(ArmFailpoints("*=delay:20").ok());
  const absl::Time start = absl::Now();
  EXPECT_TRUE(Failpoint("blob.read").ok());
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(20));
  EXPECT_EXIT(
      {
        ArmFailpoints("blob.read=crash").IgnoreError();
        Failpoint("blob.read").IgnoreError();
      },
      ::testing::KilledBySignal(SIGKILL), "failpoint blob.read hit 1: crash");
}

TEST_F(FailpointTest, RefusesRulesThatMakeNoSense) {
  for (const char* rule : {"blob.append", "blob.append=", "blob.append=explode", "no.such=eio",
                           "blob.append=eio@x", "blob.append=eio@2%1", "blob.append=delay:-1"}) {
    const absl::Status status = ArmFailpoints(rule);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << rule;
    EXPECT_THAT(status.message(), HasSubstr("failpoints: ")) << rule;
  }
}

TEST_F(FailpointTest, AFullDiskCutsOffWhatWasWritten) {
  const TempDirectory directory;
  auto store = OpenLocalBlobStore(directory.File("blobs"));
  ASSERT_TRUE(store.ok());
  auto writer = (*store)->NewBlob("acme");
  ASSERT_TRUE(writer.ok());
  const std::string text = "0123456789";
  const absl::Span<const std::byte> bytes(reinterpret_cast<const std::byte*>(text.data()), 10);
  ASSERT_TRUE(ArmFailpoints("blob.append.done=enospc@1").ok());
  EXPECT_TRUE(absl::IsResourceExhausted((*writer)->Append(bytes)));
  EXPECT_EQ((*writer)->size(), 0);
  EXPECT_EQ((*store)->Describe((*writer)->name())->size, 0);
  EXPECT_TRUE((*writer)->Append(bytes).ok());
  EXPECT_EQ((*(*store)->StoredBytes())["acme"], 10);
}

// A failpoint stands for the operation: what fails there counts as a sync that failed.
TEST_F(FailpointTest, SyncsThatFailAtAFailpointAreCounted) {
  const TempDirectory directory;
  auto store = OpenLocalBlobStore(directory.File("blobs"));
  ASSERT_TRUE(store.ok());
  const auto upload = [&]() -> absl::Status {
    auto writer = (*store)->NewBlob("acme");
    if (!writer.ok()) return writer.status();
    if (absl::Status s = (*writer)->Sync(); !s.ok()) return s;
    return (*writer)->Commit("").status();
  };
  for (const char* rule : {"blob.mkdir.directory=eio@1", "blob.sync=eio@1", "blob.sync=enospc@1",
                           "blob.sync.done=eio@1", "blob.sync.directory=eio@1",
                           "blob.commit.fsync=eio@1", "blob.commit.directory=eio@1"}) {
    ASSERT_TRUE(ArmFailpoints(rule).ok());
    const int64_t before = SyncFailures();
    EXPECT_FALSE(upload().ok()) << rule;
    EXPECT_EQ(SyncFailures(), before + 1) << rule;
  }
  ASSERT_TRUE(ArmFailpoints("blob.append=eio; blob.commit.rename=eio").ok());
  const int64_t before = SyncFailures();
  EXPECT_FALSE(upload().ok());
  EXPECT_EQ(SyncFailures(), before);
}

}  // namespace
}  // namespace quantd::server
