#pragma once

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// Backend::RoundToNearest on the CPU.
absl::StatusOr<QuantizedWeight> CpuRoundToNearest(WorkerPool& pool, Stream& stream,
                                                  const NumberFormat& format,
                                                  const BlockTransform& transform,
                                                  const DeviceTensor& weight);

}  // namespace quantd::compute
