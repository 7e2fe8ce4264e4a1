#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// Where one tensor lies in a safetensors file.
struct SafetensorsEntry {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  int64_t offset;  // of the first byte, from the start of the file
  int64_t size;    // bytes
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in order of offset
  std::map<std::string, std::string> metadata;

  // NOT_FOUND lists what the file holds.
  absl::StatusOr<const SafetensorsEntry*> Find(absl::string_view name) const;
};

// Parses and checks a header of untrusted origin before anything is allocated for it: header length
// <= 100 MB and within the file, valid JSON without duplicate names, known dtypes, rank <= 8,
// shapes whose product equals the byte range, no gaps, no overlaps, nothing behind the last tensor.
// `file_prefix` must hold at least the header (8 + N bytes) or the whole file if that is shorter.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::Span<const std::byte> file_prefix,
                                                         int64_t file_size);

// Reads from a file on disk. Thread-compatible.
class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);
  const SafetensorsHeader& header() const { return header_; }
  absl::StatusOr<Tensor> Read(absl::string_view name) const;

 private:
  std::string path_;
  SafetensorsHeader header_;
};

// Serialized file: u64 little-endian header length, JSON header padded with spaces to 8 bytes, then
// the tensors without gaps, sorted by alignment and name as the reference writer does.
absl::StatusOr<std::string> SerializeSafetensors(
    absl::Span<const NamedTensor* const> tensors,
    const std::map<std::string, std::string>& metadata);
// Writes to `path` atomically (temporary file, fsync, rename).
absl::Status WriteSafetensors(const std::string& path, absl::Span<const NamedTensor* const> tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace quantd::compute
