#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace quantd::client {

// Bytes that can be read again from any offset, which is what resuming needs. Thread-compatible.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual int64_t size() const = 0;
  // Fills `to` from `offset`. OUT_OF_RANGE where it reaches past the end.
  virtual absl::Status Read(int64_t offset, absl::Span<std::byte> to) = 0;
};

// Bytes in memory, which must outlive the source.
std::unique_ptr<ByteSource> MemorySource(absl::Span<const std::byte> bytes);

// `size` bytes of a file from `offset` on: a tensor in a safetensors file, say. Read as they are
// needed, so a file may be larger than memory. NOT_FOUND; OUT_OF_RANGE where the file is shorter.
absl::StatusOr<std::unique_ptr<ByteSource>> FileSource(const std::string& path, int64_t offset,
                                                       int64_t size);

}  // namespace quantd::client
