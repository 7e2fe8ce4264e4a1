#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/pipeline/pipeline.h"
#include "compute/stages/method.h"

namespace quantd::compute {

// Checks everything about the inputs before any of it is copied: geometry, finite weights, layers
// that fit each other and a statistic that the recipe can be solved with. INVALID_ARGUMENT or
// FAILED_PRECONDITION, naming the layer.
absl::Status CheckInputs(const Recipe& resolved, absl::Span<const LayerInput> layers,
                         const Calibration& calibration);

// The layers' rows, one below the other, on the device. Inputs were checked.
absl::StatusOr<DeviceTensor> UploadStacked(Backend& backend, Stream& stream,
                                           absl::Span<const LayerInput> layers);

// What a statistic gives to a problem.
struct CalibrationOnDevice {
  DeviceTensor block_moment;  // C/B x B x B by the recipe's transform block
  DeviceTensor full_moment;   // C x C
  DeviceTensor moment;        // the whole statistic: full, or its own diagonal blocks
  DeviceTensor sample;        // n x C
};
absl::StatusOr<CalibrationOnDevice> UploadCalibration(Backend& backend, Stream& stream,
                                                      const Recipe& resolved,
                                                      const SecondMoment& statistic);

}  // namespace quantd::compute
