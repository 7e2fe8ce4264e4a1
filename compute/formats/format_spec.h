#pragma once

#include <cstdint>

namespace quantd::compute {

// A number format as plain data, for code that cannot call NumberFormat: device kernels.
struct FormatSpec {
  // Element and scale rule, docs/numerics.md, section 3.
  enum class Rule : int {
    kMxfp4Noclip,
    kMxfp4Ocp,
    kNvfp4Amax,
    kNvfp4Mse,
    kIntegerAmax,      // scale amax / divisor
    kIntegerGaussian,  // scale factor * RMS, values (code + 1/2) * scale
    kFp8,
  };

  Rule rule = Rule::kMxfp4Noclip;
  int bits = 4;           // an element
  int64_t grid_rows = 1;  // that share a scale, as in ScaleGrid
  int64_t grid_cols = 32;
  // Of integers.
  double divisor = 1.0;
  double factor = 0.0;
  double largest_scale = 0.0;
};

}  // namespace quantd::compute
