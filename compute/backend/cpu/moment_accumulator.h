#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// The CPU's MomentAccumulator. Precision of a slice's product follows from its values, not from the
// dtype they came in, so that equal values give equal bits:
//   - all of them bfloat16 values of moderate exponent: float32 products (exact, 16 significant
//     bits) summed in float32, the diagonal in float64. Long runs of equal products, whose rounding
//     errors would all point one way, stay exact.
//   - anything else, block-diagonal sums and the paired kinds: float64.
// Weighted rows are multiplied by the root of their weight first, in float64.
// `pool` must outlive it. Errors: those of SecondMoment::Create; INVALID_ARGUMENT where `start` has
// another spec.
absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewCpuMomentAccumulator(
    WorkerPool& pool, const MomentSpec& spec, const SecondMoment* start);

}  // namespace quantd::compute
