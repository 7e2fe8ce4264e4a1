#pragma once

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// The measuring ops of Backend on the CPU. Sums run in a fixed order: the same bits on any number
// of threads.
absl::StatusOr<WeightError> CpuMeasureWeightError(WorkerPool& pool, Stream& stream,
                                                  const DeviceTensor& weight,
                                                  const DeviceTensor& dequantized,
                                                  const DeviceTensor& second_moment,
                                                  ErrorDetail detail);
absl::StatusOr<DeviceTensor> CpuComputeOutputs(WorkerPool& pool, Stream& stream,
                                               const DeviceTensor& weight,
                                               const DeviceTensor& sample);
absl::StatusOr<OutputError> CpuMeasureOutputError(
    WorkerPool& pool, Stream& stream, const NumberFormat& format, const BlockTransform& transform,
    const DeviceTensor& decoded, const DeviceTensor& sample, const DeviceTensor& outputs);
absl::StatusOr<double> CpuMeasureSpread(WorkerPool& pool, Stream& stream,
                                        const BlockTransform& transform, const DeviceTensor& weight,
                                        const DeviceTensor& block_moment);
absl::StatusOr<OutputError> CpuMeasureDriftError(
    WorkerPool& pool, Stream& stream, const DeviceTensor& weight, const DeviceTensor& dequantized,
    const DeviceTensor& moment, const DeviceTensor& moment_hat, const DeviceTensor& cross);

}  // namespace quantd::compute
