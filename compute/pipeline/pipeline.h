#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/second_moment/second_moment.h"
#include "compute/stages/report.h"

namespace quantd::compute {

// One weight matrix as the user gave it.
struct LayerInput {
  std::string name;
  const Tensor* weight = nullptr;  // R x C, a float dtype
};

// Statistics that a group is solved with; null where there is none. Data-free transforms and
// methods need none at all.
struct Calibration {
  const SecondMoment* second_moment = nullptr;      // of x; may be weighted
  const SecondMoment* second_moment_hat = nullptr;  // of xhat, the inputs after quantized layers
  const SecondMoment* cross_moment = nullptr;       // kCross, x xhat^T; with second_moment_hat
  const SecondMoment* residual_moment = nullptr;    // kResidual, (r - rhat) xhat^T
};

struct LayerResult {
  std::string name;
  std::vector<NamedTensor> tensors;  // names of docs/formats.md without the layer prefix
  ErrorReport report;
};

struct PipelineProgress {
  absl::string_view stage;  // "transform", "quantize", "pack", "report", ...
  double fraction;          // 0..1 of the layer
};

// Whether `backend` and this build can run `resolved`: UNIMPLEMENTED says what is missing.
absl::Status CheckRunnable(const Backend& backend, const Recipe& resolved);

// The whole way of one layer, or of a fusion group: layers that share one input and hence one
// transform and one global scale; their rows are stacked, solved together and split again.
//   upload -> transform -> quantize -> pack -> report
// INVALID_ARGUMENT for NaN, Inf or geometry that
// does not fit, FAILED_PRECONDITION for a missing statistic, CANCELLED. Thread-safe.
absl::StatusOr<std::vector<LayerResult>> QuantizeLayers(
    Backend& backend, const Recipe& resolved, absl::Span<const LayerInput> layers,
    const Calibration& calibration, const CancelFlag* cancel,
    const std::function<void(const PipelineProgress&)>& progress);

// What a layer (stacked rows) will need and take. Peak bytes bound device memory from above.
struct LayerEstimate {
  int64_t peak_bytes = 0;
  double device_seconds = 0.0;
  int64_t output_bytes = 0;
};
// `flops_per_second`: of the device (DeviceInfo).
LayerEstimate EstimateLayer(const Recipe& resolved, int64_t rows, int64_t cols, bool has_statistic,
                            double flops_per_second);

// Decodes a native result (tensors by name, without the layer prefix; metadata of the file) into
// the R x C F32 matrix that the original inputs would see. INVALID_ARGUMENT where something does
// not fit.
absl::StatusOr<Tensor> DequantizeResult(absl::Span<const NamedTensor> tensors,
                                        absl::string_view recipe_json);

}  // namespace quantd::compute
