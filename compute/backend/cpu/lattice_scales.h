#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// The rescaling ops of Backend on the CPU. Sums run in a fixed order: the same bits on any number
// of threads. Shapes were checked.
absl::StatusOr<LatticeScales> CpuFitLatticeScales(WorkerPool& pool, Stream& stream,
                                                  const LatticeProblem& problem,
                                                  const LatticeCodes& codes,
                                                  const std::vector<double>& spacing);
absl::StatusOr<std::vector<double>> CpuFitRowScales(WorkerPool& pool, Stream& stream,
                                                    const LatticeProblem& problem,
                                                    const DeviceTensor& codes,
                                                    const std::vector<double>& column_scale);

}  // namespace quantd::compute
