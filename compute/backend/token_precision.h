#pragma once

#include <cstddef>
#include <cstdint>

#include "compute/tensor/dtype.h"

// Which tokens are multiplied in single precision. It follows from values, not from the dtype they
// came in, so that equal values give equal bits.
namespace quantd::compute {

// Whether every value is zero or a bfloat16 value with an exponent within +-50: products of two are
// then exact in float32, and squares summed over a slice stay normal float32 numbers.
bool AreModerateBf16(const float* values, int64_t count);

// Writes `count` elements of a float dtype as bfloat16. False, with anything written, where one is
// no moderate bfloat16 value.
bool NarrowToModerateBf16(DType dtype, const std::byte* from, int64_t count, uint16_t* to);

}  // namespace quantd::compute
