#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"

namespace quantd::compute {

// Number of CUDA devices that this machine has a driver for; 0 where there is none.
int CountCudaDevices();

// The backend of one device. Everything that the CPU backend computes, on an NVIDIA GPU; sections
// 1, 9, 12 and 13 of docs/numerics.md say where its arithmetic differs. `cpu_threads` help with
// what stays on the host (0: one a core). FAILED_PRECONDITION where the device cannot be used.
absl::StatusOr<std::unique_ptr<Backend>> NewCudaBackend(int device, int cpu_threads);

}  // namespace quantd::compute
