#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace quantd::server {

// An open file. Reading is thread-safe, the rest is for one thread at a time.
class File {
 public:
  virtual ~File() = default;
  virtual absl::StatusOr<int64_t> Size() const = 0;
  // Fills `out`; OUT_OF_RANGE if the file ends before.
  virtual absl::Status ReadAt(int64_t offset, absl::Span<std::byte> out) const = 0;
  // Writes all of `data` or fails; a failed write may have left a part of it.
  virtual absl::Status WriteAt(int64_t offset, absl::Span<const std::byte> data) = 0;
  virtual absl::Status Truncate(int64_t size) = 0;
  virtual absl::Status SyncData() = 0;  // fdatasync
  virtual absl::Status Sync() = 0;      // fsync
};

struct FileInfo {
  int64_t size = 0;
  absl::Time modified;
};

// The file operations that the blob store needs, and no more, so that tests can let each of them
// fail. A full disk or quota is RESOURCE_EXHAUSTED, a missing file NOT_FOUND; the other codes are
// absl::ErrnoToStatus's. Messages name the path. Thread-safe.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual absl::StatusOr<std::unique_ptr<File>> Create(const std::string& path) = 0;  // new
  virtual absl::StatusOr<std::unique_ptr<File>> OpenForWriting(const std::string& path) = 0;
  virtual absl::StatusOr<std::unique_ptr<File>> OpenForReading(const std::string& path) = 0;
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  virtual absl::Status Remove(const std::string& path) = 0;
  virtual absl::StatusOr<FileInfo> Describe(const std::string& path) = 0;
  // True if it was made, false if it was there.
  virtual absl::StatusOr<bool> CreateDirectory(const std::string& path) = 0;
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
  // Names of the entries, sorted, without "." and "..".
  virtual absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) = 0;
};

// The operating system's.
FileSystem& PosixFileSystem();

}  // namespace quantd::server
