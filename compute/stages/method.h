#pragma once

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/recipe/recipe.h"

namespace quantd::compute {

// How exactly a layer was solved (numerics, section 4).
enum class Outcome { kExact, kDamped, kFallbackRtn };
absl::string_view NameOf(Outcome outcome);  // "EXACT", ...

// One layer (or the stacked rows of a fusion group), resident on the backend.
struct LayerProblem {
  Recipe recipe;        // resolved
  DeviceTensor weight;  // R x C, F64
  // Means, F64; empty where there is no calibration data.
  DeviceTensor block_moment;  // C/B x B x B
  DeviceTensor full_moment;   // C x C; empty for block-diagonal statistics
  DeviceTensor sample;        // n x C, n >= 1; empty without a sample
  DeviceTensor outputs;       // n x R: sample times weight^T
};

struct LayerSolution {
  TransformSolution transform;
  QuantizedWeight quantized;
  Outcome outcome = Outcome::kExact;
  double damping = 0.0;  // relative damping used, by the transform or the method
  int64_t retries = 0;   // factorizations repeated with more damping
};

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
