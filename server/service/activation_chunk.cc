#include "server/service/activation_chunk.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "compute/tensor/checksum.h"
#include "server/errors/error.h"
#include "server/service/messages.h"

namespace quantd::server {
namespace {

// `field` says where `range` is, `inline_field` where the same bytes could have come.
absl::Status CheckRange(absl::string_view field, const v1::SharedRange& range,
                        absl::string_view inline_field, const std::string& inline_bytes,
                        const ClientRegion* region) {
  if (region == nullptr) {
    return InvalidField(field,
                        "expected none, because the header names no shared_region or cuda_ipc");
  }
  if (!inline_bytes.empty()) {
    return InvalidField(field, absl::StrFormat("expected a range or %s, got both (%d bytes)",
                                               inline_field, inline_bytes.size()));
  }
  if (range.offset() < 0 || range.bytes() < 1) {
    return InvalidField(field, absl::StrFormat("expected an offset >= 0 and at least 1 byte, got "
                                               "offset %d and %d bytes",
                                               range.offset(), range.bytes()));
  }
  return CheckChunkSize(range.bytes());
}

absl::Status CopyRange(absl::string_view field, const v1::SharedRange& range,
                       const ClientRegion& region, std::string& bytes) {
  auto copied = region.Read(range.offset(), range.bytes());
  if (!copied.ok()) return Annotate(copied.status(), field);
  bytes = *std::move(copied);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ActivationChunk> TakeChunk(v1::ActivationChunk& message,
                                          const ClientRegion* region) {
  ActivationChunk chunk;
  chunk.seq = message.seq();
  chunk.rows = message.rows();
  chunk.crc32c = message.crc32c();
  chunk.data = std::move(*message.mutable_data());
  chunk.weights.assign(message.token_weights().begin(), message.token_weights().end());
  chunk.paired = std::move(*message.mutable_paired_data());
  chunk.paired_crc32c = message.paired_crc32c();
  int64_t bytes = chunk.bytes();
  if (message.has_shared()) {
    absl::Status status = CheckRange("chunk.shared", message.shared(), "data", chunk.data, region);
    if (!status.ok()) return status;
    bytes += message.shared().bytes();
  }
  if (message.has_paired_shared()) {
    absl::Status status = CheckRange("chunk.paired_shared", message.paired_shared(), "paired_data",
                                     chunk.paired, region);
    if (!status.ok()) return status;
    bytes += message.paired_shared().bytes();
  }
  if (absl::Status status = CheckChunkSize(bytes); !status.ok()) return status;
  if (message.has_shared()) {
    absl::Status status = CopyRange("chunk.shared", message.shared(), *region, chunk.data);
    if (!status.ok()) return status;
    if (region->crc_optional() && !message.has_crc32c()) chunk.crc32c = compute::Crc32c(chunk.data);
  }
  if (message.has_paired_shared()) {
    absl::Status status =
        CopyRange("chunk.paired_shared", message.paired_shared(), *region, chunk.paired);
    if (!status.ok()) return status;
    if (region->crc_optional() && !message.has_paired_crc32c()) {
      chunk.paired_crc32c = compute::Crc32c(chunk.paired);
    }
  }
  return chunk;
}

}  // namespace quantd::server
