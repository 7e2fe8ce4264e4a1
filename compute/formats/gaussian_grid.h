#pragma once

#include "absl/types/span.h"

namespace quantd::compute {

// The grid of HIGGS (arXiv 2411.17525): 2^(bits * dimension) points of `dimension` coordinates
// each, one after the other, whose mean squared error for standard normal values is least.
// tools/gaussian_grids.py computes the tables. `bits` 2..4, `dimension` 1 or 2.
absl::Span<const float> GaussianGrid(int bits, int dimension);

}  // namespace quantd::compute
