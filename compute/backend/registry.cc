#include "compute/backend/registry.h"

#include "compute/backend/cpu/cpu_backend.h"

namespace quantd::compute {

std::vector<std::unique_ptr<Backend>> OpenBackends(const BackendOptions& options) {
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(NewCpuBackend(options.cpu_threads));
  return backends;
}

}  // namespace quantd::compute
