#include "server/ingest/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

absl::Status NoRegularFile(const std::string& name) {
  return FailedPrecondition("NO_SHARED_REGION", name,
                            "expected a shared-memory region, found another kind of file");
}

absl::Status CannotOpen(const std::string& name, int error) {
  if (error == ENOENT) {
    return Error(absl::StatusCode::kNotFound, "NO_SHARED_REGION",
                 absl::StrCat("expected a shared-memory region ", name,
                              " on the server's host (and in its /dev/shm, which a container has "
                              "of its own), found none"));
  }
  if (error == EACCES) {
    return Error(absl::StatusCode::kPermissionDenied, "SHARED_REGION_UNREADABLE",
                 absl::StrCat("the server's user must not read the shared-memory region ", name));
  }
  if (error == ELOOP || error == ENXIO) return NoRegularFile(name);  // a link, a socket
  return absl::ErrnoToStatus(error, absl::StrCat("opening the shared-memory region ", name));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedRegion>> SharedRegion::Open(const std::string& name) {
  // Of itself it follows no link and closes on exec; O_NONBLOCK, which means nothing to a region,
  // keeps it from waiting for a FIFO's writer.
  const int fd = shm_open(absl::StrCat("/", name).c_str(), O_RDONLY | O_NONBLOCK, 0);
  if (fd < 0) return CannotOpen(name, errno);
  auto region = std::unique_ptr<SharedRegion>(new SharedRegion(name, fd));
  struct stat found {};
  if (fstat(fd, &found) != 0) return CannotOpen(name, errno);
  if (!S_ISREG(found.st_mode)) return NoRegularFile(name);
  return region;
}

SharedRegion::~SharedRegion() { close(fd_); }

absl::StatusOr<std::string> SharedRegion::Read(int64_t offset, int64_t bytes) const {
  std::string copy(static_cast<size_t>(bytes), '\0');
  int64_t done = 0;
  const bool can_be_there = offset <= std::numeric_limits<int64_t>::max() - bytes;
  while (can_be_there && done < bytes) {
    const ssize_t got = pread(fd_, copy.data() + done, bytes - done, offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("reading ", name_));
    if (got == 0) break;
    done += got;
  }
  if (done == bytes) return copy;
  return Error(absl::StatusCode::kOutOfRange, "SHARED_REGION_TOO_SHORT",
               absl::StrFormat("expected %d bytes at offset %d of the shared-memory region %s, got "
                               "%d before its end",
                               bytes, offset, name_, done));
}

}  // namespace quantd::server
