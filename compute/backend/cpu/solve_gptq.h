#pragma once

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// Backend::SolveGptq on the CPU; operands were checked. The same bits for any number of threads.
absl::StatusOr<GptqSolution> CpuSolveGptq(WorkerPool& pool, Stream& stream,
                                          const NumberFormat& format, const GptqProblem& problem);

}  // namespace quantd::compute
