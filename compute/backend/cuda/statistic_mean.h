#pragma once

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/second_moment/second_moment.h"

namespace quantd::compute {

// The ops of Backend that bring a statistic to the device. The sum travels as it is and is divided
// there. Operands were checked.
absl::StatusOr<DeviceTensor> CudaUploadMean(CudaStream& stream, const SecondMoment& moment);
absl::StatusOr<DeviceTensor> CudaDiagonalBlocks(CudaStream& stream, const DeviceTensor& moment,
                                                int64_t block_size);

}  // namespace quantd::compute
