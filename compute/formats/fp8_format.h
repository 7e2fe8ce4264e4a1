#pragma once

#include <memory>

#include "compute/formats/number_format.h"

namespace quantd::compute {

// FP8: E4M3 elements under a float32 scale amax / 448, one for each `grid` of rows x columns (the
// last row and column of scales cover what remains of the matrix). Activations share a scale along
// one token's columns only, as engines do: their grid is 1 x grid.cols.
std::unique_ptr<const NumberFormat> CreateFp8Format(ScaleGrid grid);

}  // namespace quantd::compute
