#pragma once

#include <memory>

#include "compute/backend/backend.h"

namespace quantd::compute {

// The float64 reference: Eigen and OpenBLAS on `threads` threads (0: one a core). Thread-safe;
// streams share the threads.
std::unique_ptr<Backend> NewCpuBackend(int threads);

}  // namespace quantd::compute
