#pragma once

#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"
#include "compute/backend/token_sum.h"

namespace quantd::compute {

// Makes the device's sum to go on from `start`, which is as SecondMoment::sum(), or empty for 0.
using NewTokenSum =
    absl::FunctionRef<absl::StatusOr<std::unique_ptr<TokenSum>>(std::vector<double> start)>;

// The MomentAccumulator of every backend around that backend's sum: checks of chunks, sample,
// digest, weights and the positions of slices. Weighted rows are multiplied by the root of their
// weight first, in float64. `pool` must outlive it.
// Errors: those of SecondMoment::Create and `new_sum`; INVALID_ARGUMENT where `start` has another
// spec. After an error of the device every call returns it.
absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewTokenAccumulator(WorkerPool& pool,
                                                                       const MomentSpec& spec,
                                                                       const SecondMoment* start,
                                                                       NewTokenSum new_sum);

}  // namespace quantd::compute
