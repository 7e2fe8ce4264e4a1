#include "server/store/quota_blob_store.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/errors/error.h"
#include "server/store/local_blob_store.h"
#include "server/store/storage_limits.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

using ::testing::HasSubstr;

absl::Span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

class QuotaBlobStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    store_ = WithStorageLimit(OpenLocalBlobStore(directory_.File("blobs")).value(),
                              [this](absl::string_view tenant) {
                                return tenant == "small" ? limit_.load() : int64_t{0};
                              });
  }
  int64_t Stored(const std::string& tenant) { return (*store_->StoredBytes())[tenant]; }

  const TempDirectory directory_;
  std::atomic<int64_t> limit_{100};
  std::unique_ptr<BlobStore> store_;
};

TEST_F(QuotaBlobStoreTest, RefusesWhatDoesNotFitAndStoresNothingOfIt) {
  const auto first = store_->Put("small", std::string(60, 'a'));
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = store_->Put("small", std::string(41, 'b'));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(second.status().message(), HasSubstr("60 bytes are stored, 41 more were asked for, "
                                                   "the limit is 100"));
  const ErrorDetails details = DetailsOf(second.status());
  EXPECT_EQ(details.reason, "STORAGE_QUOTA");
  EXPECT_EQ(details.subject, "tenants/small");
  EXPECT_EQ(details.retry_after, absl::ZeroDuration());  // waiting does not help
  EXPECT_EQ(Stored("small"), 60);
  EXPECT_EQ(store_->List()->size(), 1u);
  EXPECT_TRUE(store_->Put("small", std::string(40, 'b')).ok());
}

TEST_F(QuotaBlobStoreTest, OtherTenantsAreNotConcerned) {
  ASSERT_TRUE(store_->Put("small", std::string(100, 'a')).ok());
  EXPECT_TRUE(store_->Put("large", std::string(1000, 'a')).ok());
  EXPECT_TRUE(store_->CheckRoom("large", 1 << 30).ok());
}

TEST_F(QuotaBlobStoreTest, AnUploadStopsAtTheLimitAndGoesOnWhenThereIsRoom) {
  const auto other = store_->Put("small", std::string(50, 'a'));
  auto writer = store_->NewBlob("small");
  ASSERT_TRUE(writer.ok());
  const std::string text(30, 'x');
  ASSERT_TRUE((*writer)->Append(Bytes(text)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted((*writer)->Append(Bytes(text))));
  EXPECT_EQ((*writer)->size(), 30);
  EXPECT_TRUE(absl::IsResourceExhausted(store_->CheckRoom("small", 30)));
  ASSERT_TRUE(store_->Delete(other->name).ok());
  EXPECT_TRUE(store_->CheckRoom("small", 30).ok());
  EXPECT_TRUE((*writer)->Append(Bytes(text)).ok());
  const auto blob = (*writer)->Commit("");
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(*store_->ReadAll(*blob), text + text);
}

TEST_F(QuotaBlobStoreTest, ALoweredLimitKeepsWhatIsThere) {
  const auto blob = store_->Put("small", std::string(90, 'a'));
  limit_ = 10;
  EXPECT_TRUE(absl::IsResourceExhausted(store_->Put("small", "b").status()));
  EXPECT_TRUE(store_->ReadAll(*blob).ok());
  EXPECT_TRUE(store_->Delete(blob->name).ok());
  EXPECT_TRUE(store_->Put("small", "b").ok());
}

TEST_F(QuotaBlobStoreTest, NeverBeyondTheLimitHoweverManyWrite) {
  limit_ = 1000;
  std::atomic<int> stored{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 40; ++n) stored += store_->Put("small", std::string(10, 'a')).ok();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(stored.load(), 100);
  EXPECT_EQ(Stored("small"), 10 * stored.load());
  while (store_->Put("small", std::string(10, 'a')).ok()) ++stored;
  EXPECT_EQ(stored.load(), 100);  // and it can be used up
}

TEST(StorageLimitsTest, OwnLimitsAreReplacedAsAWhole) {
  StorageLimits limits(1000, {{"a", 10}, {"b", 20}});
  EXPECT_EQ(limits.Of("a"), 10);
  EXPECT_EQ(limits.Of("c"), 1000);
  limits.Replace({{"b", 5}, {"c", 7}});
  EXPECT_EQ(limits.Of("a"), 1000);
  EXPECT_EQ(limits.Of("b"), 5);
  EXPECT_EQ(limits.Of("c"), 7);
}

}  // namespace
}  // namespace quantd::server
