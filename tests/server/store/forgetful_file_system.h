#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/store/file.h"

namespace quantd::server {

// The operating system's files, which lose with the power what was not synced: the contents of
// files go back to their last sync, and names to the last sync of their directory. For one thread.
class ForgetfulFileSystem final : public FileSystem {
 public:
  // Everything that no sync has made durable is gone. Open files must not be used any more.
  void LosePower() {
    std::error_code ignored;
    // Names first: a rename that was not synced has not taken place, a new name not been made.
    for (auto name = unsynced_names_.rbegin(); name != unsynced_names_.rend(); ++name) {
      if (name->from.empty()) {
        std::filesystem::remove(name->to, ignored);
        durable_.erase(name->to);
      } else {
        std::filesystem::rename(name->to, name->from, ignored);
        durable_[name->from] = durable_[name->to];
        durable_.erase(name->to);
      }
    }
    unsynced_names_.clear();
    for (const auto& [path, bytes] : durable_) {
      if (std::filesystem::exists(path)) {
        std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
      }
    }
  }

  absl::StatusOr<std::unique_ptr<File>> Create(const std::string& path) override {
    auto file = real_.Create(path);
    if (!file.ok()) return file;
    unsynced_names_.push_back({.from = "", .to = path});
    durable_[path] = "";
    return std::make_unique<ForgetfulFile>(*this, path, *std::move(file));
  }
  absl::StatusOr<std::unique_ptr<File>> OpenForWriting(const std::string& path) override {
    auto file = real_.OpenForWriting(path);
    if (!file.ok()) return file;
    return std::make_unique<ForgetfulFile>(*this, path, *std::move(file));
  }
  absl::StatusOr<std::unique_ptr<File>> OpenForReading(const std::string& path) override {
    return real_.OpenForReading(path);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (auto s = real_.Rename(from, to); !s.ok()) return s;
    durable_[to] = durable_[from];
    durable_.erase(from);
    unsynced_names_.push_back({.from = from, .to = to});
    return absl::OkStatus();
  }
  absl::Status Remove(const std::string& path) override {
    durable_.erase(path);
    return real_.Remove(path);
  }
  absl::StatusOr<FileInfo> Describe(const std::string& path) override {
    return real_.Describe(path);
  }
  absl::StatusOr<bool> CreateDirectory(const std::string& path) override {
    auto made = real_.CreateDirectory(path);
    if (made.ok() && *made) unsynced_names_.push_back({.from = "", .to = path});
    return made;
  }
  absl::Status SyncDirectory(const std::string& path) override {
    if (auto s = real_.SyncDirectory(path); !s.ok()) return s;
    std::erase_if(unsynced_names_, [&](const Name& name) {
      return std::filesystem::path(name.to).parent_path() == path;
    });
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override {
    return real_.ListDirectory(path);
  }

 private:
  struct Name {
    std::string from;  // empty: made
    std::string to;
  };

  class ForgetfulFile final : public File {
   public:
    ForgetfulFile(ForgetfulFileSystem& owner, std::string path, std::unique_ptr<File> real)
        : owner_(owner), path_(std::move(path)), real_(std::move(real)) {}
    absl::StatusOr<int64_t> Size() const override { return real_->Size(); }
    absl::Status ReadAt(int64_t offset, absl::Span<std::byte> out) const override {
      return real_->ReadAt(offset, out);
    }
    absl::Status WriteAt(int64_t offset, absl::Span<const std::byte> data) override {
      return real_->WriteAt(offset, data);
    }
    absl::Status Truncate(int64_t size) override { return real_->Truncate(size); }
    absl::Status SyncData() override { return Synced(real_->SyncData()); }
    absl::Status Sync() override { return Synced(real_->Sync()); }

   private:
    absl::Status Synced(absl::Status status) {
      if (!status.ok()) return status;
      std::string bytes(static_cast<size_t>(real_->Size().value()), '\0');
      status = real_->ReadAt(
          0, absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), bytes.size()));
      owner_.durable_[path_] = std::move(bytes);
      return status;
    }

    ForgetfulFileSystem& owner_;
    const std::string path_;  // while it is written; a rename comes after the last sync
    std::unique_ptr<File> real_;
  };

  FileSystem& real_ = PosixFileSystem();
  std::map<std::string, std::string> durable_;  // contents, by present name
  std::vector<Name> unsynced_names_;            // in order
};

}  // namespace quantd::server
