#pragma once

#include "compute/stages/method.h"

namespace quantd::compute {

// HIGGS (arXiv 2411.17525): rounding to a grid that is optimal for normal values, after a Hadamard
// transform of large groups of columns makes the weights close to normal. Needs no calibration data
// and uses none; the activations stay as they are.
const QuantizationMethod& HiggsMethod();

}  // namespace quantd::compute
