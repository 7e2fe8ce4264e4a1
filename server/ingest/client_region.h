#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace quantd::server {

// Memory of a client's on this host, open for reading. Thread-safe.
class ClientRegion {
 public:
  virtual ~ClientRegion() = default;

  // A copy of the `bytes` >= 0 from `offset` >= 0 on. What changes meanwhile may be there as it was
  // before or after. OUT_OF_RANGE if the region ends before.
  virtual absl::StatusOr<std::string> Read(int64_t offset, int64_t bytes) const = 0;

  // Whether the client may leave a chunk without a CRC, since its processor never sees the bytes.
  virtual bool crc_optional() const { return false; }
};

}  // namespace quantd::server
