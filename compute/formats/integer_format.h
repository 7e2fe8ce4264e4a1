#pragma once

#include <cstdint>
#include <memory>

#include "compute/formats/number_format.h"

namespace quantd::compute {

// Symmetric integers of `bits` (2, 3, 4 or 8) under one bf16 scale for `group` columns of a row,
// codes in two's complement and measured against the rounded scale:
//   kAbsmax:            scale amax / (2^(b-1) - 1),     value = code * scale
//   kCompressedTensors: scale amax / ((2^b - 1) / 2),   value = code * scale
//   kGaussianMse:       scale k_b * 2 / (2^b - 1) * RMS, value = (code + 1/2) * scale, code =
//   floor;
//                       k_b is the clipping point of least squared error for Gaussian values (WUSH)
// Engines that run 2 and 3 bits quantize weights alone that far: the activations that meet them are
// 8-bit integers (kAbsmax).
std::unique_ptr<const NumberFormat> CreateIntegerFormat(int bits, int64_t group, ScaleRule rule);

}  // namespace quantd::compute
