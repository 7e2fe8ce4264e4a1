#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_device.h"

namespace quantd::compute {

// Backend::OpenRegion. `device` outlives the region.
absl::StatusOr<std::unique_ptr<DeviceRegion>> OpenIpcRegion(CudaDevice& device,
                                                            absl::string_view handle,
                                                            int64_t bytes);

}  // namespace quantd::compute
