#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

// What every backend looks at in a chunk of tokens before anything is accumulated.
namespace quantd::compute {

// INVALID_ARGUMENT where the chunk lacks what the kind takes, brings what it does not take, has
// another size than its tokens, or weights that are no finite numbers >= 0.
absl::Status CheckChunkShape(const MomentSpec& spec, const TokenChunk& chunk);

// The chunk's digest, as SecondMoment::DigestOf, of a chunk of the right shape. INVALID_ARGUMENT
// names the row and column of the first NaN, Inf or magnitude beyond float32's.
using ChunkDigest = unsigned __int128;
absl::StatusOr<ChunkDigest> CheckAndDigestChunk(WorkerPool& pool, const MomentSpec& spec,
                                                const TokenChunk& chunk);

}  // namespace quantd::compute
