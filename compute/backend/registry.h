#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"

namespace quantd::compute {

struct BackendOptions {
  // "auto": every CUDA device, or the CPU where there is none. Else a list of "cuda:N", "cuda" (all
  // of them) and "cpu", separated by commas; all of it must be there.
  std::string devices = "auto";
  int cpu_threads = 0;  // 0: one a core
};

// The devices asked for, in that order: at least one. The one place that knows which backends are
// compiled in. INVALID_ARGUMENT for a list that names no device, NOT_FOUND for a device that this
// build or machine does not have.
absl::StatusOr<std::vector<std::unique_ptr<Backend>>> OpenBackends(const BackendOptions& options);

// Why "auto" means the CPU here; empty where there is a CUDA device.
std::string WhyNoCuda();

}  // namespace quantd::compute
