#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "compute/formats/safetensors.h"
#include "compute/formats/safetensors_layout.h"

namespace quantd::compute {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;

absl::Status Errno(absl::string_view what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat(what, " ", path));
}

absl::Status ReadAt(int fd, int64_t offset, absl::Span<std::byte> to, const std::string& path) {
  while (!to.empty()) {
    const ssize_t got = pread(fd, to.data(), to.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Errno("cannot read", path);
    if (got == 0) {
      return absl::DataLossError(
          absl::StrCat(path, ": expected ", to.size(), " more bytes at ", offset));
    }
    to.remove_prefix(got);
    offset += got;
  }
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, absl::Span<const std::byte> data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t written = write(fd, data.data(), data.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Errno("cannot write", path);
    data.remove_prefix(written);
  }
  return absl::OkStatus();
}

absl::Status WriteTensors(int fd, absl::Span<const NamedTensor* const> tensors,
                          const std::map<std::string, std::string>& metadata,
                          const std::string& path) {
  const absl::StatusOr<SafetensorsLayout> layout = LayOutSafetensors(tensors, metadata);
  if (!layout.ok()) return layout.status();
  const auto* header = reinterpret_cast<const std::byte*>(layout->header.data());
  if (absl::Status status = WriteAll(fd, {header, layout->header.size()}, path); !status.ok()) {
    return status;
  }
  for (const NamedTensor* tensor : layout->order) {
    if (absl::Status status = WriteAll(fd, tensor->tensor.bytes(), path); !status.ok())
      return status;
  }
  // Disks report late that they are full: now, not after the rename.
  if (fsync(fd) != 0) return Errno("cannot write", path);
  return absl::OkStatus();
}

// A rename is durable once its directory is.
absl::Status SyncDirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string directory =
      slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return Errno("cannot open", directory);
  const absl::Cleanup close_directory = [fd] { close(fd); };
  return fsync(fd) == 0 ? absl::OkStatus() : Errno("cannot sync", directory);
}

}  // namespace

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  // Not blocking, so that a pipe in the place of a file is refused instead of waited for.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return Errno("cannot open", path);
  const absl::Cleanup close_file = [fd] { close(fd); };
  struct stat info;
  if (fstat(fd, &info) != 0) return Errno("cannot open", path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a regular file"));
  }
  std::vector<std::byte> prefix(std::min<int64_t>(info.st_size, kLengthBytes));
  if (absl::Status status = ReadAt(fd, 0, absl::MakeSpan(prefix), path); !status.ok())
    return status;
  uint64_t length = 0;
  if (!prefix.empty()) std::memcpy(&length, prefix.data(), prefix.size());
  if (length <= static_cast<uint64_t>(kMaxHeaderBytes) &&
      static_cast<int64_t>(length + kLengthBytes) <= info.st_size) {
    prefix.resize(kLengthBytes + length);
    absl::Span<std::byte> json = absl::MakeSpan(prefix).subspan(kLengthBytes);
    if (absl::Status status = ReadAt(fd, kLengthBytes, json, path); !status.ok()) return status;
  }
  absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(prefix, info.st_size);
  if (!header.ok()) {
    return absl::Status(header.status().code(),
                        absl::StrCat(path, ": ", header.status().message()));
  }
  SafetensorsFile file;
  file.path_ = path;
  file.header_ = *std::move(header);
  return file;
}

absl::StatusOr<Tensor> SafetensorsFile::Read(absl::string_view name) const {
  const absl::StatusOr<const SafetensorsEntry*> entry = header_.Find(name);
  if (!entry.ok()) {
    return absl::Status(entry.status().code(), absl::StrCat(path_, ": ", entry.status().message()));
  }
  absl::StatusOr<Tensor> tensor = Tensor::Create((*entry)->dtype, (*entry)->shape);
  if (!tensor.ok()) return tensor.status();
  const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Errno("cannot open", path_);
  const absl::Cleanup close_file = [fd] { close(fd); };
  if (absl::Status status = ReadAt(fd, (*entry)->offset, tensor->bytes(), path_); !status.ok()) {
    return status;
  }
  return tensor;
}

absl::Status WriteSafetensors(const std::string& path, absl::Span<const NamedTensor* const> tensors,
                              const std::map<std::string, std::string>& metadata) {
  // In the same directory: a rename must not cross file systems.
  const std::string temporary =
      absl::StrCat(path, ".", absl::Hex(std::random_device()(), absl::kZeroPad8), ".tmp");
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return Errno("cannot create", temporary);
  absl::Cleanup remove_temporary = [&temporary] { unlink(temporary.c_str()); };
  absl::Status written = WriteTensors(fd, tensors, metadata, temporary);
  const int closed = close(fd);
  if (!written.ok()) return written;
  if (closed != 0) return Errno("cannot write", temporary);
  if (rename(temporary.c_str(), path.c_str()) != 0) return Errno("cannot rename to", path);
  std::move(remove_temporary).Cancel();
  return SyncDirectoryOf(path);
}

}  // namespace quantd::compute
