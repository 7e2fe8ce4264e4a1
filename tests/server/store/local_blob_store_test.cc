#include "server/store/local_blob_store.h"

#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <set>

#include "compute/tensor/checksum.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/sync_failures.h"
#include "tests/server/store/faulty_file_system.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

absl::Span<const std::byte> Bytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::string RandomText(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::string text(size, '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

std::string Sha256(absl::string_view text) { return compute::ToBytes(compute::Sha256::Of(text)); }

class LocalBlobStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { Open(); }

  void Open() {
    store_.reset();
    auto store = OpenLocalBlobStore(root_, files_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  std::unique_ptr<BlobWriter> New() {
    auto writer = store_->NewBlob("acme");
    EXPECT_TRUE(writer.ok()) << writer.status();
    return *std::move(writer);
  }

  std::string PathOf(absl::string_view name) const {
    const std::string random(name.substr(name.find('/') + 1));
    return root_ + "/acme/" + random.substr(0, 2) + "/" + random;
  }

  int64_t SizeOnDisk(const std::string& path) const {
    return static_cast<int64_t>(std::filesystem::file_size(path));
  }

  TempDirectory directory_;
  std::string root_ = directory_.File("blobs");
  FaultyFileSystem files_;
  std::unique_ptr<BlobStore> store_;
};

TEST_F(LocalBlobStoreTest, WhatIsPutIsReadAfterReopening) {
  const std::string text = RandomText(3'000'001, 1);
  const auto blob = store_->Put("acme", text);
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(blob->size, 3'000'001);
  EXPECT_EQ(blob->sha256, Sha256(text));
  Open();
  const auto all = store_->ReadAll(*blob);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(*all, text);

  const auto reader = store_->Open(*blob);
  ASSERT_TRUE(reader.ok()) << reader.status();
  std::string part(1000, '\0');
  const auto out = absl::MakeSpan(reinterpret_cast<std::byte*>(part.data()), part.size());
  ASSERT_TRUE((*reader)->Read(1'234'567, out).ok());
  EXPECT_EQ(part, text.substr(1'234'567, 1000));
}

TEST_F(LocalBlobStoreTest, EverySyncThatFailsIsCounted) {
  const absl::Status error = absl::ErrnoToStatus(EIO, "sync");
  const int64_t before = SyncFailures();
  files_.Fail("fsync directory", error);  // of a new tenant's directory
  EXPECT_FALSE(store_->NewBlob("new").ok());
  EXPECT_EQ(SyncFailures(), before + 1);

  auto writer = New();
  files_.Fail("fdatasync", error);
  EXPECT_FALSE(writer->Sync().ok());
  EXPECT_FALSE(writer->Sync().ok());  // refused: no further sync
  EXPECT_EQ(SyncFailures(), before + 2);

  writer = New();
  files_.Fail("fsync directory", error);
  EXPECT_FALSE(writer->Sync().ok());
  EXPECT_EQ(SyncFailures(), before + 3);

  writer = New();
  files_.Fail("fsync", error);
  EXPECT_FALSE(writer->Commit("").ok());
  EXPECT_EQ(SyncFailures(), before + 4);

  writer = New();
  files_.Fail("fsync directory", error);
  EXPECT_FALSE(writer->Commit("").ok());
  EXPECT_EQ(SyncFailures(), before + 5);

  EXPECT_TRUE(store_->Put("acme", "text").ok());
  EXPECT_EQ(SyncFailures(), before + 5);
}

TEST_F(LocalBlobStoreTest, AnEmptyBlobIsABlob) {
  const auto blob = store_->Put("acme", "");
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(*store_->ReadAll(*blob), "");
  EXPECT_TRUE(store_->Open(*blob).ok());
}

TEST_F(LocalBlobStoreTest, ReadingPastTheEndIsRefused) {
  const auto blob = store_->Put("acme", "0123456789");
  const auto reader = store_->Open(*blob);
  ASSERT_TRUE(reader.ok());
  std::byte out[4];
  EXPECT_TRUE((*reader)->Read(6, absl::MakeSpan(out)).ok());
  for (const int64_t offset : {int64_t{7}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    EXPECT_EQ((*reader)->Read(offset, absl::MakeSpan(out)).code(), absl::StatusCode::kOutOfRange);
  }
}

TEST_F(LocalBlobStoreTest, CommittingSyncsBeforeItRenames) {
  auto writer = New();
  ASSERT_TRUE(writer->Append(Bytes("abc")).ok());
  files_.Forget();
  const auto blob = writer->Commit(Sha256("abc"));
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_THAT(files_.operations(),
              ElementsAre("size", "read", "fsync", "rename", "fsync directory"));
}

TEST_F(LocalBlobStoreTest, TheFirstSyncMakesTheFilesNameDurableToo) {
  auto writer = New();
  ASSERT_TRUE(writer->Append(Bytes("abc")).ok());
  files_.Forget();
  ASSERT_TRUE(writer->Sync().ok());
  EXPECT_THAT(files_.operations(), ElementsAre("fdatasync", "fsync directory"));
  ASSERT_TRUE(writer->Sync().ok());
  EXPECT_EQ(files_.operations().back(), "fdatasync");
}

TEST_F(LocalBlobStoreTest, AStagedBlobResumesAtWhatWasDurable) {
  std::string name;
  {
    auto writer = New();
    name = writer->name();
    ASSERT_TRUE(writer->Append(Bytes("durable")).ok());
    ASSERT_TRUE(writer->Sync().ok());
    ASSERT_TRUE(writer->Append(Bytes(" and lost")).ok());
  }
  Open();
  auto resumed = store_->ResumeBlob(name, 7);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ((*resumed)->size(), 7);
  EXPECT_EQ((*resumed)->name(), name);
  ASSERT_TRUE((*resumed)->Append(Bytes(" and kept")).ok());
  const auto blob = (*resumed)->Commit(Sha256("durable and kept"));
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(*store_->ReadAll(*blob), "durable and kept");
}

TEST_F(LocalBlobStoreTest, ACommittedBlobThatNothingRefersToResumes) {
  auto writer = New();
  ASSERT_TRUE(writer->Append(Bytes("0123456789")).ok());
  ASSERT_TRUE(writer->Commit("").ok());  // and a crash before the record
  auto resumed = store_->ResumeBlob(writer->name(), 4);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  ASSERT_TRUE((*resumed)->Append(Bytes("xyz")).ok());
  const auto blob = (*resumed)->Commit(Sha256("0123xyz"));
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(*store_->ReadAll(*blob), "0123xyz");
}

TEST_F(LocalBlobStoreTest, ResumingNeedsEverythingThatWasDurable) {
  auto writer = New();
  ASSERT_TRUE(writer->Append(Bytes("abc")).ok());
  const absl::Status status = store_->ResumeBlob(writer->name(), 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(writer->name()));
  EXPECT_EQ(store_->ResumeBlob("acme/" + std::string(32, '0'), 1).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(store_->ResumeBlob(writer->name(), -1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// The record of a new upload may outlive the name of its empty file.
TEST_F(LocalBlobStoreTest, ResumingNothingStartsAnew) {
  const std::string name = "acme/" + std::string(32, '0');
  auto writer = store_->ResumeBlob(name, 0);
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_EQ((*writer)->name(), name);
  ASSERT_TRUE((*writer)->Append(Bytes("abc")).ok());
  const auto blob = (*writer)->Commit(Sha256("abc"));
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(*store_->ReadAll(*blob), "abc");
}

TEST_F(LocalBlobStoreTest, AWrongDigestIsDataLossAndCommitsNothing) {
  auto writer = New();
  ASSERT_TRUE(writer->Append(Bytes("abc")).ok());
  const auto blob = writer->Commit(Sha256("abd"));
  EXPECT_EQ(blob.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(blob.status().message()), HasSubstr(writer->name()));
  EXPECT_FALSE(std::filesystem::exists(PathOf(writer->name())));
  EXPECT_EQ(writer->Append(Bytes("d")).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(store_->Delete(writer->name()).ok());
  EXPECT_THAT(*store_->List(), IsEmpty());
}

TEST_F(LocalBlobStoreTest, AMalformedDigestIsRefusedAndTheWriterGoesOn) {
  auto writer = New();
  ASSERT_TRUE(writer->Append(Bytes("abc")).ok());
  EXPECT_EQ(writer->Commit("short").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(writer->Commit(Sha256("abc")).ok());
  EXPECT_EQ(writer->Commit("").status().code(), absl::StatusCode::kFailedPrecondition);
}

// The digest is that of the disk, not of what was handed over.
TEST_F(LocalBlobStoreTest, DamageOfTheStagingFileIsFoundAtCommit) {
  auto writer = New();
  ASSERT_TRUE(writer->Append(Bytes("0123456789")).ok());
  std::fstream(PathOf(writer->name()) + ".partial", std::ios::in | std::ios::out) << "x";
  EXPECT_EQ(writer->Commit(Sha256("0123456789")).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(LocalBlobStoreTest, AFlippedBitIsFoundWhereverItIs) {
  const std::string text = RandomText(3'000'000, 2);
  const auto blob = store_->Put("acme", text);
  ASSERT_TRUE(blob.ok());
  for (const size_t at : {size_t{0}, size_t{1'048'576}, text.size() - 1}) {
    std::string damaged = text;
    damaged[at] = static_cast<char>(damaged[at] ^ 4);
    std::ofstream(PathOf(blob->name), std::ios::binary) << damaged;
    const absl::Status status = store_->ReadAll(*blob).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr(blob->name));
    EXPECT_EQ(store_->Open(*blob).status().code(), absl::StatusCode::kDataLoss);
  }
}

TEST_F(LocalBlobStoreTest, AMissingShortOrUnreadableBlobIsDataLoss) {
  const auto blob = store_->Put("acme", "0123456789");
  ASSERT_TRUE(blob.ok());
  std::filesystem::resize_file(PathOf(blob->name), 9);
  EXPECT_EQ(store_->ReadAll(*blob).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(store_->Open(*blob).status().code(), absl::StatusCode::kDataLoss);
  std::filesystem::remove(PathOf(blob->name));
  EXPECT_EQ(store_->ReadAll(*blob).status().code(), absl::StatusCode::kDataLoss);

  const auto other = store_->Put("acme", "0123456789");
  const auto reader = store_->Open(*other);
  ASSERT_TRUE(reader.ok());
  files_.Fail("read", absl::UnknownError("Input/output error"), 3);
  std::byte out[4];
  EXPECT_EQ((*reader)->Read(0, absl::MakeSpan(out)).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(store_->ReadAll(*other).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(store_->Open(*other).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(store_->ReadAll(*other).ok());
}

TEST_F(LocalBlobStoreTest, AFullDiskCutsTheFileBackAndTheWriterGoesOn) {
  auto writer = New();
  ASSERT_TRUE(writer->Append(Bytes("0123")).ok());
  files_.Fail("write", absl::ResourceExhaustedError("No space left on device"));
  EXPECT_EQ(writer->Append(Bytes("456789")).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(writer->size(), 4);
  EXPECT_EQ(SizeOnDisk(PathOf(writer->name()) + ".partial"), 4);
  ASSERT_TRUE(writer->Append(Bytes("xy")).ok());
  EXPECT_TRUE(writer->Commit(Sha256("0123xy")).ok());
}

// The real thing: the operating system refuses to let the file grow.
TEST_F(LocalBlobStoreTest, ARefusalOfTheOperatingSystemIsAnError) {
  ::signal(SIGXFSZ, SIG_IGN);
  auto writer = New();
  ASSERT_TRUE(writer->Append(Bytes("0123")).ok());
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 6;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = writer->Append(Bytes("456789"));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("File too large"));
  EXPECT_FALSE(writer->Append(Bytes("x")).ok());
}

TEST_F(LocalBlobStoreTest, AWriterThatCannotCutBackRefusesEverything) {
  auto writer = New();
  files_.Fail("write", absl::ResourceExhaustedError("No space left on device"));
  files_.Fail("truncate", absl::UnknownError("Input/output error"));
  EXPECT_FALSE(writer->Append(Bytes("abc")).ok());
  EXPECT_FALSE(writer->Append(Bytes("abc")).ok());
  EXPECT_FALSE(writer->Sync().ok());
  EXPECT_FALSE(writer->Commit("").ok());
}

TEST_F(LocalBlobStoreTest, AfterAFailedSyncNothingIsAcknowledged) {
  const absl::Status errors[] = {absl::UnknownError("Input/output error"),
                                 absl::ResourceExhaustedError("No space left on device")};
  for (const char* operation : {"fdatasync", "fsync directory"}) {
    for (const absl::Status& error : errors) {
      auto writer = New();
      ASSERT_TRUE(writer->Append(Bytes("abc")).ok());
      files_.Fail(operation, error);
      EXPECT_EQ(writer->Sync().code(), absl::StatusCode::kInternal);
      // The next one would succeed: the writer does not ask.
      EXPECT_EQ(writer->Sync().code(), absl::StatusCode::kInternal);
      EXPECT_EQ(writer->Append(Bytes("d")).code(), absl::StatusCode::kInternal);
      EXPECT_EQ(writer->Commit("").status().code(), absl::StatusCode::kInternal);
    }
  }
}

TEST_F(LocalBlobStoreTest, AFailureOnTheWayToACommittedBlobIsAnError) {
  for (const char* operation : {"size", "read", "fsync", "rename", "fsync directory"}) {
    SCOPED_TRACE(operation);
    auto writer = New();
    ASSERT_TRUE(writer->Append(Bytes("abc")).ok());
    files_.Fail(operation, absl::UnknownError("Input/output error"));
    EXPECT_FALSE(writer->Commit(Sha256("abc")).ok());
    EXPECT_FALSE(writer->Commit(Sha256("abc")).ok());
  }
}

TEST_F(LocalBlobStoreTest, APutThatFailsLeavesNothing) {
  for (const char* operation : {"create", "write", "size", "read", "fsync", "rename"}) {
    SCOPED_TRACE(operation);
    files_.Fail(operation, absl::ResourceExhaustedError("No space left on device"));
    EXPECT_FALSE(store_->Put("acme", "abc").ok());
    EXPECT_THAT(*store_->List(), IsEmpty());
  }
  files_.Fail("create directory", absl::ResourceExhaustedError("No space left on device"));
  EXPECT_EQ(store_->Put("acme", "abc").status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(LocalBlobStoreTest, ListsAndSizesCoverStagingFilesAndTenants) {
  const auto first = store_->Put("acme", "0123456789");
  const auto second = store_->Put("other", "xyz");
  auto writer = New();
  ASSERT_TRUE(writer->Append(Bytes("half")).ok());
  std::filesystem::create_directory(root_ + "/lost+found");
  EXPECT_THAT(*store_->List(), UnorderedElementsAre(first->name, second->name, writer->name()));
  EXPECT_THAT(*store_->StoredBytes(), UnorderedElementsAre(Pair("acme", 14), Pair("other", 3)));
}

TEST_F(LocalBlobStoreTest, DeletingIsIdempotentAndTakesStagingFilesToo) {
  const auto blob = store_->Put("acme", "abc");
  auto writer = New();
  ASSERT_TRUE(store_->Delete(blob->name).ok());
  ASSERT_TRUE(store_->Delete(blob->name).ok());
  ASSERT_TRUE(store_->Delete(writer->name()).ok());
  EXPECT_THAT(*store_->List(), IsEmpty());
  const auto other = store_->Put("acme", "abc");
  files_.Fail("remove", absl::PermissionDeniedError("no"), 1);
  EXPECT_FALSE(store_->Delete(other->name).ok());
}

TEST_F(LocalBlobStoreTest, NoNameLeadsOutOfTheDirectory) {
  const std::string random(32, '0');
  const std::string names[] = {"../" + random,
                               "acme/../../etc/passwd",
                               "/etc/passwd",
                               "acme/",
                               random,
                               "acme/" + random + "/x",
                               "ACME/" + random,
                               "acme/" + std::string(32, 'G'),
                               std::string("ac\0me/", 6) + random,
                               ""};
  for (const std::string& name : names) {
    const BlobRef blob{.name = name, .size = 0, .sha256 = ""};
    EXPECT_EQ(store_->ReadAll(blob).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(store_->Delete(name).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(store_->ResumeBlob(name, 0).status().code(), absl::StatusCode::kInvalidArgument);
  }
  for (const char* tenant : {"", "..", "a/b", "A"}) {
    EXPECT_EQ(store_->NewBlob(tenant).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(LocalBlobStoreTest, NamesDoNotRepeat) {
  std::set<std::string> names;
  for (int i = 0; i < 500; ++i) names.insert(New()->name());
  EXPECT_EQ(names.size(), 500u);
}

}  // namespace
}  // namespace quantd::server
