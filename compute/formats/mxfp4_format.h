#pragma once

#include <memory>

#include "compute/formats/number_format.h"

namespace quantd::compute {

// MXFP4 (OCP Microscaling Formats v1.0): groups of 32 E2M1 elements under an E8M0 scale. With
// e = floor(log2 amax) of the group:
//   kOcp:    step 2^(e-2), stored as byte e - 2 + 127; amax maps to [4, 8), elements saturate at 6.
//   kNoclip: step 2^e / 3, stored as byte e + 127 with the constant global divisor 3; amax maps to
//            [3, 6) (WUSH, arXiv 2512.00956).
std::unique_ptr<const NumberFormat> CreateMxfp4Format(ScaleRule rule);

}  // namespace quantd::compute
