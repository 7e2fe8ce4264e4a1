// What the blob store has promised is there after a loss of power at any moment: random sequences
// of what ingest does, on files that forget what was not synced.

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "server/store/local_blob_store.h"
#include "tests/server/store/forgetful_file_system.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

// A writer and what it has promised.
struct Upload {
  std::unique_ptr<BlobWriter> writer;
  std::string bytes;      // appended
  int64_t committed = 0;  // of them: synced
};

class PowerLoss {
 public:
  explicit PowerLoss(uint32_t seed) : random_(seed) { Open(); }

  void Run(int steps) {
    for (int step = 0; step < steps && !testing::Test::HasFailure(); ++step) {
      switch (Below(10)) {
        case 0:
          LosePower();
          break;
        case 1:
          Begin();
          break;
        case 2:
          Put();
          break;
        case 3:
        case 4:
          Sync();
          break;
        case 5:
          Finish();
          break;
        default:
          Append();
      }
    }
    LosePower();
  }

 private:
  uint32_t Below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  std::string RandomBytes() {
    std::string bytes(1 + Below(300), '\0');
    for (char& c : bytes) c = static_cast<char>(random_());
    return bytes;
  }

  void Open() {
    auto store = OpenLocalBlobStore(root_, files_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    // The server's directory is there before a store is.
    ASSERT_TRUE(files_.SyncDirectory(directory_.path()).ok());
  }

  void Begin() {
    auto writer = store_->NewBlob("acme");
    ASSERT_TRUE(writer.ok()) << writer.status();
    const std::string name = (*writer)->name();
    uploads_[name].writer = *std::move(writer);
  }

  Upload* Any() {
    if (uploads_.empty()) return nullptr;
    return &std::next(uploads_.begin(), Below(static_cast<uint32_t>(uploads_.size())))->second;
  }

  void Append() {
    Upload* const upload = Any();
    if (upload == nullptr) return;
    const std::string bytes = RandomBytes();
    ASSERT_TRUE(
        upload->writer->Append({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()})
            .ok());
    upload->bytes += bytes;
  }

  void Sync() {
    Upload* const upload = Any();
    if (upload == nullptr) return;
    ASSERT_TRUE(upload->writer->Sync().ok());
    upload->committed = static_cast<int64_t>(upload->bytes.size());
  }

  void Finish() {
    Upload* const upload = Any();
    if (upload == nullptr) return;
    const std::string name = upload->writer->name();
    const auto blob = upload->writer->Commit("");
    ASSERT_TRUE(blob.ok()) << blob.status();
    promised_.emplace_back(*blob, upload->bytes);
    uploads_.erase(name);
  }

  void Put() {
    const std::string bytes = RandomBytes();
    const auto blob = store_->Put("acme", bytes);
    ASSERT_TRUE(blob.ok()) << blob.status();
    promised_.emplace_back(*blob, bytes);
  }

  void LosePower() {
    std::map<std::string, Upload> before;
    before.swap(uploads_);
    for (auto& [name, upload] : before) upload.writer.reset();
    store_.reset();
    files_.LosePower();
    Open();
    for (const auto& [blob, bytes] : promised_) {
      const auto read = store_->ReadAll(blob);
      ASSERT_TRUE(read.ok()) << read.status();
      ASSERT_EQ(*read, bytes);
    }
    for (auto& [name, upload] : before) {
      // One of which nothing was promised may be gone with its name.
      auto writer = store_->ResumeBlob(name, upload.committed);
      ASSERT_TRUE(writer.ok()) << writer.status();
      upload.writer = *std::move(writer);
      upload.bytes.resize(static_cast<size_t>(upload.committed));
      uploads_[name] = std::move(upload);
    }
  }

  std::mt19937 random_;
  const TempDirectory directory_;
  const std::string root_ = directory_.path() + "/blobs";
  ForgetfulFileSystem files_;
  std::unique_ptr<BlobStore> store_;
  std::map<std::string, Upload> uploads_;
  std::vector<std::pair<BlobRef, std::string>> promised_;
};

TEST(PowerLossTest, WhatWasPromisedIsThere) {
  for (uint32_t seed = 1; seed <= 15 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    PowerLoss(seed).Run(60);
  }
}

// The test itself would notice: contents without a sync and names without one are gone.
TEST(PowerLossTest, WhatWasNotSyncedIsGone) {
  const TempDirectory directory;
  ForgetfulFileSystem files;
  const std::string path = directory.File("file");
  {
    auto file = files.Create(path);
    ASSERT_TRUE(file.ok());
    const std::string text = "text";
    ASSERT_TRUE(
        (*file)->WriteAt(0, {reinterpret_cast<const std::byte*>(text.data()), text.size()}).ok());
    ASSERT_TRUE((*file)->SyncData().ok());
  }
  files.LosePower();
  EXPECT_FALSE(std::filesystem::exists(path));  // its directory was not synced
  {
    auto file = files.Create(path);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(files.SyncDirectory(directory.path()).ok());
    const std::string text = "text";
    ASSERT_TRUE(
        (*file)->WriteAt(0, {reinterpret_cast<const std::byte*>(text.data()), text.size()}).ok());
  }
  files.LosePower();
  EXPECT_EQ(std::filesystem::file_size(path), 0u);  // its contents were not
  ASSERT_TRUE(files.Rename(path, path + "2").ok());
  files.LosePower();
  EXPECT_TRUE(std::filesystem::exists(path));  // nor its new name
}

}  // namespace
}  // namespace quantd::server
