#pragma once

#include "compute/stages/method.h"

namespace quantd::compute {

// Round to nearest after the recipe's transform. `auto` damping (recipe.damping unset, WUS or WUSH
// with the marginal solver) tries a few values and keeps the one whose weight+activation error on
// the sample is least; without a sample it is kDampingWithoutSample.
const QuantizationMethod& RtnMethod();

inline constexpr double kDampingWithoutSample = 1e-2;

}  // namespace quantd::compute
