#include "client/cpp/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace quantd::client {
namespace {

absl::Status CheckRange(int64_t offset, size_t count, int64_t size) {
  if (offset < 0 || offset > size || static_cast<int64_t>(count) > size - offset) {
    return absl::OutOfRangeError(
        absl::StrCat("bytes ", offset, "..", offset + static_cast<int64_t>(count), " of ", size));
  }
  return absl::OkStatus();
}

class MemoryBytes final : public ByteSource {
 public:
  explicit MemoryBytes(absl::Span<const std::byte> bytes) : bytes_(bytes) {}
  int64_t size() const override { return static_cast<int64_t>(bytes_.size()); }
  absl::Status Read(int64_t offset, absl::Span<std::byte> to) override {
    if (absl::Status status = CheckRange(offset, to.size(), size()); !status.ok()) return status;
    if (!to.empty()) std::memcpy(to.data(), bytes_.data() + offset, to.size());
    return absl::OkStatus();
  }

 private:
  absl::Span<const std::byte> bytes_;
};

class FileBytes final : public ByteSource {
 public:
  FileBytes(std::string path, int file, int64_t start, int64_t size)
      : path_(std::move(path)), file_(file), start_(start), size_(size) {}
  ~FileBytes() override { close(file_); }
  int64_t size() const override { return size_; }
  absl::Status Read(int64_t offset, absl::Span<std::byte> to) override {
    if (absl::Status status = CheckRange(offset, to.size(), size_); !status.ok()) return status;
    while (!to.empty()) {
      const ssize_t count = pread(file_, to.data(), to.size(), start_ + offset);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path_));
      if (count == 0) {
        return absl::DataLossError(absl::StrCat(path_, " became shorter while it was read"));
      }
      offset += count;
      to.remove_prefix(static_cast<size_t>(count));
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const int file_;
  const int64_t start_;
  const int64_t size_;
};

}  // namespace

std::unique_ptr<ByteSource> MemorySource(absl::Span<const std::byte> bytes) {
  return std::make_unique<MemoryBytes>(bytes);
}

absl::StatusOr<std::unique_ptr<ByteSource>> FileSource(const std::string& path, int64_t offset,
                                                       int64_t size) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  auto source = std::make_unique<FileBytes>(path, file, offset, size);
  struct stat about;
  if (fstat(file, &about) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
  }
  if (offset < 0 || size < 0 || offset > about.st_size || size > about.st_size - offset) {
    return absl::OutOfRangeError(absl::StrCat(path, " has ", about.st_size, " bytes, expected ",
                                              size, " from offset ", offset));
  }
  return source;
}

}  // namespace quantd::client
