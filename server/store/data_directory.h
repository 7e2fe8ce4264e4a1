#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace quantd::server {

// The directory of one server: quantd.db, blobs/ and LOCK. Holding this object holds the lock, so
// two servers never share a directory; the kernel drops it when the process ends, however it ends.
class DataDirectory {
 public:
  // Makes the directory (mode 0700) where it is missing. FAILED_PRECONDITION if another process
  // has it; the message names its process id.
  static absl::StatusOr<std::unique_ptr<DataDirectory>> Open(const std::string& path);
  ~DataDirectory();
  DataDirectory(const DataDirectory&) = delete;
  DataDirectory& operator=(const DataDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string database_path() const { return path_ + "/quantd.db"; }
  std::string blob_directory() const { return path_ + "/blobs"; }

 private:
  DataDirectory(std::string path, int lock_fd);
  std::string path_;
  int lock_fd_;
};

}  // namespace quantd::server
