#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/formats/number_format.h"

namespace quantd::compute {

// Backend::RoundToNearest.
absl::StatusOr<QuantizedWeight> CudaRoundToNearest(CudaStream& stream, const NumberFormat& format,
                                                   const BlockTransform& transform,
                                                   const DeviceTensor& weight);

// FakeQuantize of compute/formats/number_format.h, in place on the device.
absl::Status CudaFakeQuantize(CudaStream& stream, const NumberFormat& format, int64_t rows,
                              int64_t cols, double* values);

// Uninitialized codes and scales of a rows x cols matrix as they are stored.
struct NewCodes {
  NewTensor<uint8_t> codes;
  NewTensor<uint8_t> scales;
};
absl::StatusOr<NewCodes> NewDeviceCodes(CudaStream& stream, const NumberFormat& format,
                                        int64_t rows, int64_t cols);

}  // namespace quantd::compute
