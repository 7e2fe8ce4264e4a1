#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_device.h"

namespace quantd::compute {

// As Backend::NewAccumulator, on `device`, which must outlive it. It has streams of its own. Where
// its arithmetic differs from the CPU's: token_sums.h.
absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewCudaAccumulator(CudaDevice& device,
                                                                      const MomentSpec& spec,
                                                                      const SecondMoment* start);

}  // namespace quantd::compute
