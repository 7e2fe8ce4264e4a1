#include "server/store/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"

namespace quantd::server {
namespace {

constexpr mode_t kFileMode = 0600;  // weights and results are the owner's alone
constexpr mode_t kDirectoryMode = 0700;

absl::Status ErrorOf(int error, absl::string_view doing, absl::string_view path) {
  const std::string message = absl::StrCat(doing, " ", path);
  if (error == ENOSPC || error == EDQUOT) {
    return absl::Status(absl::StatusCode::kResourceExhausted,
                        absl::ErrnoToStatus(error, message).message());
  }
  return absl::ErrnoToStatus(error, message);
}

class PosixFile final : public File {
 public:
  PosixFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  ~PosixFile() override { ::close(fd_); }
  PosixFile(const PosixFile&) = delete;
  PosixFile& operator=(const PosixFile&) = delete;

  absl::StatusOr<int64_t> Size() const override {
    struct stat info;
    if (::fstat(fd_, &info) != 0) return ErrorOf(errno, "size of", path_);
    return info.st_size;
  }

  absl::Status ReadAt(int64_t offset, absl::Span<std::byte> out) const override {
    while (!out.empty()) {
      const ssize_t n = ::pread(fd_, out.data(), out.size(), offset);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrorOf(errno, "read", path_);
      if (n == 0) {
        return absl::OutOfRangeError(
            absl::StrCat(path_, " ends at byte ", offset, ", ", out.size(), " more were expected"));
      }
      out.remove_prefix(static_cast<size_t>(n));
      offset += n;
    }
    return absl::OkStatus();
  }

  absl::Status WriteAt(int64_t offset, absl::Span<const std::byte> data) override {
    while (!data.empty()) {
      const ssize_t n = ::pwrite(fd_, data.data(), data.size(), offset);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrorOf(errno, "write", path_);
      data.remove_prefix(static_cast<size_t>(n));
      offset += n;
    }
    return absl::OkStatus();
  }

  absl::Status Truncate(int64_t size) override {
    return ::ftruncate(fd_, size) == 0 ? absl::OkStatus() : ErrorOf(errno, "truncate", path_);
  }

  absl::Status SyncData() override {
    return ::fdatasync(fd_) == 0 ? absl::OkStatus() : ErrorOf(errno, "fdatasync", path_);
  }

  absl::Status Sync() override {
    return ::fsync(fd_) == 0 ? absl::OkStatus() : ErrorOf(errno, "fsync", path_);
  }

 private:
  const std::string path_;
  const int fd_;
};

class Posix final : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<File>> Create(const std::string& path) override {
    return Open(path, O_RDWR | O_CREAT | O_EXCL, "create");
  }

  absl::StatusOr<std::unique_ptr<File>> OpenForWriting(const std::string& path) override {
    return Open(path, O_RDWR, "open");
  }

  absl::StatusOr<std::unique_ptr<File>> OpenForReading(const std::string& path) override {
    return Open(path, O_RDONLY, "open");
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
    return ErrorOf(errno, "rename", absl::StrCat(from, " to ", to));
  }

  absl::Status Remove(const std::string& path) override {
    return ::unlink(path.c_str()) == 0 ? absl::OkStatus() : ErrorOf(errno, "remove", path);
  }

  absl::StatusOr<FileInfo> Describe(const std::string& path) override {
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) return ErrorOf(errno, "look at", path);
    return FileInfo{.size = info.st_size, .modified = absl::TimeFromTimespec(info.st_mtim)};
  }

  absl::StatusOr<bool> CreateDirectory(const std::string& path) override {
    if (::mkdir(path.c_str(), kDirectoryMode) == 0) return true;
    if (errno != EEXIST) return ErrorOf(errno, "create directory", path);
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) return ErrorOf(errno, "look at", path);
    if (!S_ISDIR(info.st_mode)) return ErrorOf(ENOTDIR, "create directory", path);
    return false;
  }

  absl::Status SyncDirectory(const std::string& path) override {
    auto directory = Open(path, O_RDONLY | O_DIRECTORY, "open directory");
    return directory.ok() ? (*directory)->Sync() : directory.status();
  }

  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override {
    DIR* directory = ::opendir(path.c_str());
    if (directory == nullptr) return ErrorOf(errno, "list", path);
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(directory)) {
      const absl::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
      errno = 0;
    }
    const int error = errno;
    ::closedir(directory);
    if (error != 0) return ErrorOf(error, "list", path);
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  static absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, int flags,
                                                    absl::string_view doing) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC, kFileMode);
    if (fd < 0) return ErrorOf(errno, doing, path);
    return std::make_unique<PosixFile>(path, fd);
  }
};

}  // namespace

FileSystem& PosixFileSystem() {
  static Posix files;
  return files;
}

}  // namespace quantd::server
