#pragma once

#include "compute/stages/method.h"

namespace quantd::compute {

// GPTQ after the recipe's transform, whose blocks are solved from the weights as updated so far
// (docs/numerics.md, section 8). `auto` damping of the transform is picked by RTN.
// FAILED_PRECONDITION without a full second moment, or where recipe.gptq.asymmetric misses the
// moments of drift; INVALID_ARGUMENT where no damping makes the second moment factor, unless
// recipe.gptq.allow_rtn_fallback: then RTN's solution with outcome FALLBACK_RTN.
const QuantizationMethod& GptqMethod();

}  // namespace quantd::compute
