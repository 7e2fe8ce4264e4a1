#pragma once

#include <cstdint>

#include "compute/tensor/tensor.h"

namespace quantd::compute {

// Heavy-tailed data of a linear layer, all of one made-up distribution of inputs: neighbours are
// correlated, magnitudes differ between columns, a few columns are far larger and one direction is
// common to all. Seeded; all cores.
struct SyntheticLayer {
  Tensor weight;  // R x C, BF16
  Tensor moment;  // C x C, F64: the exact second moment of the inputs
  Tensor sample;  // n x C, F32: inputs
};
SyntheticLayer MakeSyntheticLayer(int64_t rows, int64_t cols, int64_t sample_rows, uint64_t seed);

}  // namespace quantd::compute
