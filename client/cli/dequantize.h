#pragma once

#include <string>

#include "absl/status/status.h"

namespace quantd::cli {

// Reads a result file with any number of layers and writes, for each, the R x C F32 matrix that the
// original inputs would see: `weight` where the file holds one layer, else `LAYER.weight`. Needs no
// server. INVALID_ARGUMENT for files that are no result.
absl::Status Dequantize(const std::string& in, const std::string& out);

}  // namespace quantd::cli
