#pragma once

#include <memory>

#include "compute/formats/number_format.h"

namespace quantd::compute {

// NVFP4: groups of 16 E2M1 elements under an E4M3 scale, and one float32 global for the tensor:
// value = element * scale / global, global = 448 * 6 / amax(tensor).
//   kAmax: scale = e4m3(amax(group) * global / 6).
//   kMse:  of that scale and its neighbours (4 codes below to 2 above), the one that leaves the
//          least squared error in the group. For weights; activations are rounded on the fly by the
//          engine, so `activation_format` is kAmax. Decodes like kAmax.
std::unique_ptr<const NumberFormat> CreateNvfp4Format(ScaleRule rule);

}  // namespace quantd::compute
