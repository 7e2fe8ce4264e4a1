#include "client/cpp/shared_region.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace quantd::client {
namespace {

bool IsLoopback(absl::string_view address) {
  if (absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:")) {
    return true;
  }
  absl::string_view host = address.substr(0, address.rfind(':'));
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  if (host == "localhost") return true;
  in_addr four{};
  if (inet_pton(AF_INET, std::string(host).c_str(), &four) == 1) {
    return ntohl(four.s_addr) >> 24 == 127;
  }
  in6_addr six{};
  return inet_pton(AF_INET6, std::string(host).c_str(), &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}

std::string Path(const std::string& name) { return absl::StrCat("/", name); }

}  // namespace

absl::Status CheckSameHost(absl::string_view address) {
  if (IsLoopback(address)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("shared memory: expected a server on this host (localhost, 127.0.0.1, [::1] or "
                   "unix:PATH), got ",
                   address));
}

absl::StatusOr<std::unique_ptr<SharedRegion>> SharedRegion::Create(absl::string_view tenant,
                                                                   int64_t bytes) {
  std::random_device random;
  const std::string name =
      absl::StrCat("quantd.", tenant, ".", absl::Hex(random(), absl::kZeroPad8),
                   absl::Hex(random(), absl::kZeroPad8), absl::Hex(random(), absl::kZeroPad8));
  const int fd = shm_open(Path(name).c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("shared memory ", name));
  auto region = std::unique_ptr<SharedRegion>(new SharedRegion(name, fd));
  const int error = posix_fallocate(fd, 0, bytes);
  if (error == ENOSPC || error == ENOMEM || error == EDQUOT) {
    return absl::ResourceExhaustedError(
        absl::StrCat("expected ", bytes, " bytes of shared memory; df /dev/shm says what is left"));
  }
  if (error != 0) return absl::ErrnoToStatus(error, absl::StrCat("shared memory ", name));
  return region;
}

SharedRegion::~SharedRegion() {
  Unlink();
  close(fd_);
}

absl::Status SharedRegion::Write(int64_t offset, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = pwrite(fd_, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, absl::StrCat("writing ", name_));
    offset += written;
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

void SharedRegion::Unlink() {
  if (linked_) shm_unlink(Path(name_).c_str());
  linked_ = false;
}

}  // namespace quantd::client
