#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/pipeline/pipeline.h"
#include "compute/stages/method.h"

namespace quantd::compute {

// Checks everything about the inputs before any of it is copied: geometry, finite weights, layers
// that fit each other and statistics that the recipe can be solved with: of the right kinds and
// shapes, full where the recipe needs it, the moments of drift both or none, a residual moment for
// one layer alone. INVALID_ARGUMENT or FAILED_PRECONDITION, naming the layer and the statistic.
absl::Status CheckInputs(const Recipe& resolved, absl::Span<const LayerInput> layers,
                         const Calibration& calibration);

// The layers' rows, one below the other, on the device. Inputs were checked.
absl::StatusOr<DeviceTensor> UploadStacked(Backend& backend, Stream& stream,
                                           absl::Span<const LayerInput> layers);

// What the statistics give to a problem: their means.
struct CalibrationOnDevice {
  DeviceTensor block_moment;  // C/B x B x B by the recipe's transform block
  DeviceTensor full_moment;   // C x C
  DeviceTensor moment;        // the whole statistic: full, or its own diagonal blocks
  DeviceTensor sample;        // n x C
  // Empty where not given.
  DeviceTensor second_moment_hat;  // C x C
  DeviceTensor cross_moment;       // C x C
  DeviceTensor residual_moment;    // R x C
};
absl::StatusOr<CalibrationOnDevice> UploadCalibration(Backend& backend, Stream& stream,
                                                      const Recipe& resolved,
                                                      const Calibration& given);

}  // namespace quantd::compute
