#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"

namespace quantd::compute {

struct BackendOptions {
  int cpu_threads = 0;  // 0: one a core
};

// Every device that this build and machine can use, best first: CUDA devices, then the CPU, which
// is always there. The one place that knows which backends are compiled in.
std::vector<std::unique_ptr<Backend>> OpenBackends(const BackendOptions& options);

}  // namespace quantd::compute
