#pragma once

#include "absl/status/statusor.h"
#include "quantd/v1/calibration.pb.h"
#include "server/ingest/activation_stream.h"
#include "server/ingest/client_region.h"

namespace quantd::server {

// A message's chunk with its bytes, which are moved out of the message or copied from `region`
// (null: the header named none) and from then on the server's own. INVALID_ARGUMENT for bytes in
// both places, for ranges that are none or have no region, and above limits.max_chunk_bytes, before
// anything is copied; else as ClientRegion::Read. Contents are the stream's to check. A CRC that
// the region's client may leave away is that of what was copied.
absl::StatusOr<ActivationChunk> TakeChunk(v1::ActivationChunk& message, const ClientRegion* region);

}  // namespace quantd::server
