#include "server/store/data_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace quantd::server {
namespace {

// What the holder of the lock has written into it.
std::string HolderOf(int lock_fd) {
  char text[32];
  const ssize_t n = ::pread(lock_fd, text, sizeof(text), 0);
  int64_t pid = 0;
  if (n <= 0 || !absl::SimpleAtoi(absl::string_view(text, static_cast<size_t>(n)), &pid)) {
    return "another process";
  }
  return absl::StrCat("process ", pid);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DataDirectory>> DataDirectory::Open(const std::string& path) {
  const std::string name = absl::StrCat("data_dir '", path, "'");
  if (path.empty()) return absl::InvalidArgumentError("data_dir: expected a directory, got ''");
  std::error_code error;
  const bool made = std::filesystem::create_directories(path, error);
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("create ", name));
  if (made) {
    std::filesystem::permissions(path, std::filesystem::perms::owner_all, error);
    if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("set permissions of ", name));
  }

  const std::string lock_path = path + "/LOCK";
  const int fd = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("open ", lock_path));
  std::unique_ptr<DataDirectory> directory(new DataDirectory(path, fd));
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return absl::ErrnoToStatus(errno, absl::StrCat("lock ", lock_path));
    return absl::FailedPreconditionError(
        absl::StrCat(name, " is in use by ", HolderOf(fd), "; stop that or choose another"));
  }
  const std::string pid = absl::StrCat(::getpid(), "\n");
  if (::ftruncate(fd, 0) != 0 ||
      ::pwrite(fd, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return absl::ErrnoToStatus(errno, absl::StrCat("write ", lock_path));
  }
  return directory;
}

DataDirectory::DataDirectory(std::string path, int lock_fd)
    : path_(std::move(path)), lock_fd_(lock_fd) {}

// The file stays: removing it would let a third process lock a new one beside a waiting second.
DataDirectory::~DataDirectory() { ::close(lock_fd_); }

}  // namespace quantd::server
