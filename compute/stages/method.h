#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/formats/encoded_weight.h"
#include "compute/recipe/recipe.h"

namespace quantd::compute {

// How exactly a layer was solved (numerics, section 4).
enum class Outcome { kExact, kDamped, kFallbackRtn };
absl::string_view NameOf(Outcome outcome);  // "EXACT", ...

// One layer (or the stacked rows of a fusion group), resident on the backend.
struct LayerProblem {
  Recipe recipe;        // resolved
  DeviceTensor weight;  // R x C, F64
  // Rows of each layer of the group, which are packed apart. Empty: one layer.
  std::vector<int64_t> layer_rows;
  // Means, F64; empty where there is no calibration data.
  DeviceTensor block_moment;  // C/B x B x B
  DeviceTensor full_moment;   // C x C; empty for block-diagonal statistics
  DeviceTensor sample;        // n x C, n >= 1; empty without a sample
  DeviceTensor outputs;       // n x R: sample times weight^T
  // Drift between the inputs X that the model had and those Xhat of its quantized predecessors;
  // empty where not given.
  DeviceTensor second_moment_hat;  // C x C, E[xhat xhat^T]
  DeviceTensor cross_moment;       // C x C, E[x xhat^T]
  DeviceTensor residual_moment;    // R x C, E[(r - rhat) xhat^T]
};

struct LayerSolution {
  TransformSolution transform;
  std::shared_ptr<const EncodedWeight> encoded;
  // R x C, F64: the matrix that the original inputs see.
  DeviceTensor dequantized;
  // R x C, F64: the matrix that transformed and quantized activations see. Empty for methods
  // without an activation format.
  DeviceTensor decoded;
  Outcome outcome = Outcome::kExact;
  double damping = 0.0;  // relative damping used, by the transform or the method
  int64_t retries = 0;   // factorizations repeated with more damping
  // WaterSIC: inputs whose columns are zero because they carry next to nothing, and the empirical
  // entropy of each layer's codes as one distribution, in bits a weight.
  int64_t dropped_inputs = 0;
  std::vector<double> entropy_bits;
};

// The parts of a solution that an op over a number format returns; brings the codes to the host.
absl::Status SetQuantized(Backend& backend, Stream& stream, const NumberFormat& format,
                          QuantizedWeight quantized, LayerSolution& solution);

// A way to choose codes: RTN here, GPTQ and WaterSIC beside it. Stateless and thread-safe.
class QuantizationMethod {
 public:
  virtual ~QuantizationMethod() = default;
  // Solves transform and codes. `stage` is told the name of each step as it begins.
  virtual absl::StatusOr<LayerSolution> Solve(
      Backend& backend, Stream& stream, const LayerProblem& problem,
      absl::FunctionRef<void(absl::string_view)> stage) const = 0;
};

// UNIMPLEMENTED for a method that this build does not have.
absl::StatusOr<const QuantizationMethod*> FindMethod(Method method);

}  // namespace quantd::compute
