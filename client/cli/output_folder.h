#pragma once

#include <string>

#include "absl/status/status.h"

namespace quantd::cli {

// Makes the folder that --out names, with those above it. INVALID_ARGUMENT says why it cannot be.
absl::Status CreateOutputFolder(const std::string& path);

}  // namespace quantd::cli
