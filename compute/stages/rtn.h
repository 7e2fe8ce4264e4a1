#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/stages/method.h"

namespace quantd::compute {

// Round to nearest after the recipe's transform. `auto` damping (recipe.damping unset, WUS or WUSH
// with the marginal solver) tries kDampingCandidates and keeps the one whose weight+activation
// error on the sample is least; without a sample it is kDampingWithoutSample.
const QuantizationMethod& RtnMethod();

// For other methods: the damping of the recipe, or one picked as Solve does, but by at most 128
// rows of the sample, which is a quarter of the work.
absl::StatusOr<double> PickTransformDamping(Backend& backend, Stream& stream,
                                            const LayerProblem& problem,
                                            absl::FunctionRef<void(absl::string_view)> stage);

// What `auto` damping tries, half a decade apart: the error is flat enough in between. On equal
// errors the smaller one wins.
inline constexpr double kDampingCandidates[] = {1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1};
inline constexpr double kDampingWithoutSample = 1e-2;

}  // namespace quantd::compute
