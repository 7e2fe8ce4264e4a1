#include "compute/backend/cpu/moment_accumulator.h"

#include <utility>
#include <vector>

#include "compute/backend/cpu/paired_sum.h"
#include "compute/backend/cpu/symmetric_sum.h"
#include "compute/backend/token_accumulator.h"

namespace quantd::compute {

absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewCpuMomentAccumulator(
    WorkerPool& pool, const MomentSpec& spec, const SecondMoment* start) {
  return NewTokenAccumulator(
      pool, spec, start, [&](std::vector<double> sum) -> absl::StatusOr<std::unique_ptr<TokenSum>> {
        sum.resize(spec.SumElements());
        if (spec.is_paired()) {
          return NewPairedSum(pool, spec.paired_cols, spec.cols, std::move(sum));
        }
        return NewSymmetricSum(pool, spec.cols, spec.block_size, std::move(sum));
      });
}

}  // namespace quantd::compute
