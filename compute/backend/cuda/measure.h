#pragma once

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/formats/number_format.h"

namespace quantd::compute {

// The measuring ops of Backend. Sums run in a fixed order: the same bits each time.
absl::StatusOr<WeightError> CudaMeasureWeightError(CudaStream& stream, const DeviceTensor& weight,
                                                   const DeviceTensor& dequantized,
                                                   const DeviceTensor& second_moment,
                                                   ErrorDetail detail);
absl::StatusOr<DeviceTensor> CudaComputeOutputs(CudaStream& stream, const DeviceTensor& weight,
                                                const DeviceTensor& sample);
absl::StatusOr<OutputError> CudaMeasureOutputError(CudaStream& stream, const NumberFormat& format,
                                                   const BlockTransform& transform,
                                                   const DeviceTensor& decoded,
                                                   const DeviceTensor& sample,
                                                   const DeviceTensor& outputs);
absl::StatusOr<double> CudaMeasureSpread(CudaStream& stream, const BlockTransform& transform,
                                         const DeviceTensor& weight,
                                         const DeviceTensor& block_moment);
absl::StatusOr<OutputError> CudaMeasureDriftError(CudaStream& stream, const DeviceTensor& weight,
                                                  const DeviceTensor& dequantized,
                                                  const DeviceTensor& moment,
                                                  const DeviceTensor& moment_hat,
                                                  const DeviceTensor& cross);

}  // namespace quantd::compute
