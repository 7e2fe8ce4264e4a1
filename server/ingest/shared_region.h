#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "server/ingest/client_region.h"

namespace quantd::server {

// A POSIX shared-memory region that a client on this host made, open for reading. The client may
// write, shrink or grow it at any time: it is read with system calls and never mapped, because a
// mapping whose region is shrunk ends the process that touches it. Thread-safe.
class SharedRegion final : public ClientRegion {
 public:
  // `name`: as for shm_open, without the slash; whether the caller may name it is checked before.
  // NOT_FOUND for no such region, PERMISSION_DENIED for one that this process must not read,
  // FAILED_PRECONDITION for what is no regular file.
  static absl::StatusOr<std::unique_ptr<SharedRegion>> Open(const std::string& name);
  ~SharedRegion() override;
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  absl::StatusOr<std::string> Read(int64_t offset, int64_t bytes) const override;

 private:
  SharedRegion(std::string name, int fd) : name_(std::move(name)), fd_(fd) {}

  const std::string name_;
  const int fd_;
};

}  // namespace quantd::server
