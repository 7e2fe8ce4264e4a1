#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/store/file.h"

namespace quantd::server {

// The operating system's files, where operations can be made to fail, and are written down. For one
// thread.
class FaultyFileSystem final : public FileSystem {
 public:
  // The next `count` calls of `operation` ("write", "fdatasync", "rename", ...) return `error`.
  void Fail(const std::string& operation, absl::Status error, int count = 1) {
    faults_[operation] = {std::move(error), count};
  }
  // A write that fails first writes half of its data, as a full disk does.
  const std::vector<std::string>& operations() const { return operations_; }
  void Forget() { operations_.clear(); }

  absl::StatusOr<std::unique_ptr<File>> Create(const std::string& path) override {
    if (auto s = Do("create"); !s.ok()) return s;
    return Wrap(real_.Create(path));
  }
  absl::StatusOr<std::unique_ptr<File>> OpenForWriting(const std::string& path) override {
    if (auto s = Do("open for writing"); !s.ok()) return s;
    return Wrap(real_.OpenForWriting(path));
  }
  absl::StatusOr<std::unique_ptr<File>> OpenForReading(const std::string& path) override {
    if (auto s = Do("open for reading"); !s.ok()) return s;
    return Wrap(real_.OpenForReading(path));
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (auto s = Do("rename"); !s.ok()) return s;
    return real_.Rename(from, to);
  }
  absl::Status Remove(const std::string& path) override {
    if (auto s = Do("remove"); !s.ok()) return s;
    return real_.Remove(path);
  }
  absl::StatusOr<FileInfo> Describe(const std::string& path) override {
    if (auto s = Do("describe"); !s.ok()) return s;
    return real_.Describe(path);
  }
  absl::StatusOr<bool> CreateDirectory(const std::string& path) override {
    if (auto s = Do("create directory"); !s.ok()) return s;
    return real_.CreateDirectory(path);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    if (auto s = Do("fsync directory"); !s.ok()) return s;
    return real_.SyncDirectory(path);
  }
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override {
    if (auto s = Do("list"); !s.ok()) return s;
    return real_.ListDirectory(path);
  }

 private:
  struct Fault {
    absl::Status error;
    int left = 0;
  };

  class FaultyFile final : public File {
   public:
    FaultyFile(FaultyFileSystem& owner, std::unique_ptr<File> real)
        : owner_(owner), real_(std::move(real)) {}
    absl::StatusOr<int64_t> Size() const override {
      if (auto s = owner_.Do("size"); !s.ok()) return s;
      return real_->Size();
    }
    absl::Status ReadAt(int64_t offset, absl::Span<std::byte> out) const override {
      if (auto s = owner_.Do("read"); !s.ok()) return s;
      return real_->ReadAt(offset, out);
    }
    absl::Status WriteAt(int64_t offset, absl::Span<const std::byte> data) override {
      if (auto s = owner_.Do("write"); !s.ok()) {
        real_->WriteAt(offset, data.first(data.size() / 2)).IgnoreError();
        return s;
      }
      return real_->WriteAt(offset, data);
    }
    absl::Status Truncate(int64_t size) override {
      if (auto s = owner_.Do("truncate"); !s.ok()) return s;
      return real_->Truncate(size);
    }
    absl::Status SyncData() override {
      if (auto s = owner_.Do("fdatasync"); !s.ok()) return s;
      return real_->SyncData();
    }
    absl::Status Sync() override {
      if (auto s = owner_.Do("fsync"); !s.ok()) return s;
      return real_->Sync();
    }

   private:
    FaultyFileSystem& owner_;
    std::unique_ptr<File> real_;
  };

  absl::Status Do(const std::string& operation) {
    operations_.push_back(operation);
    Fault& fault = faults_[operation];
    if (fault.left <= 0) return absl::OkStatus();
    --fault.left;
    return fault.error;
  }

  absl::StatusOr<std::unique_ptr<File>> Wrap(absl::StatusOr<std::unique_ptr<File>> file) {
    if (!file.ok()) return file;
    return std::make_unique<FaultyFile>(*this, *std::move(file));
  }

  FileSystem& real_ = PosixFileSystem();
  std::map<std::string, Fault> faults_;
  std::vector<std::string> operations_;
};

}  // namespace quantd::server
