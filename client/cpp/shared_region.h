#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quantd::client {

// INVALID_ARGUMENT unless `address` (HOST:PORT or unix:PATH) is this host's own.
absl::Status CheckSameHost(absl::string_view address);

// POSIX shared memory, readable by this user alone, in which bytes are left for a server on this
// host. The name is there only until Unlink, to be called once the server has opened it, so that
// nothing stays behind however this process ends. Thread-compatible.
class SharedRegion {
 public:
  // Takes all of its memory at once: RESOURCE_EXHAUSTED where /dev/shm has not so much left.
  static absl::StatusOr<std::unique_ptr<SharedRegion>> Create(absl::string_view tenant,
                                                              int64_t bytes);
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  const std::string& name() const { return name_; }  // quantd.{tenant}.{random}
  absl::Status Write(int64_t offset, absl::string_view bytes);
  void Unlink();

 private:
  SharedRegion(std::string name, int fd) : name_(std::move(name)), fd_(fd) {}

  const std::string name_;
  const int fd_;
  bool linked_ = true;
};

}  // namespace quantd::client
