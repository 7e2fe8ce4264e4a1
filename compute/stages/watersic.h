#pragma once

#include "compute/stages/method.h"

namespace quantd::compute {

// WaterSIC (arXiv 2603.04956; docs/numerics.md, section 9): inputs of next to no energy are
// dropped, the others cancelled successively on a lattice of one spacing, whose rate is searched
// until all that is stored meets recipe.rate_bits; then row and column scales are fitted and
// rounded to what is stored. Drift and residual moments are used where the problem has them.
// Errors: FAILED_PRECONDITION without a full second moment; INVALID_ARGUMENT for a moment that is
// not symmetric, has a negative diagonal, is 0 or is not positive semidefinite, and for rates that
// this layer cannot have (the message names those it can).
const QuantizationMethod& WaterSicMethod();

inline constexpr double kWaterSicDamping = 1e-4;  // relative, where the recipe gives none

}  // namespace quantd::compute
