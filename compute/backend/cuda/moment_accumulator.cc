#include "compute/backend/cuda/moment_accumulator.h"

#include <utility>
#include <vector>

#include "compute/backend/cuda/token_sums.h"
#include "compute/backend/token_accumulator.h"

namespace quantd::compute {

absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewCudaAccumulator(CudaDevice& device,
                                                                      const MomentSpec& spec,
                                                                      const SecondMoment* start) {
  return NewTokenAccumulator(
      device.pool(), spec, start,
      [&](std::vector<double> sum) -> absl::StatusOr<std::unique_ptr<TokenSum>> {
        if (spec.is_paired()) return NewCudaPairedSum(device, spec.paired_cols, spec.cols, sum);
        if (spec.layout == MomentLayout::kBlockDiagonal) {
          return NewCudaBlockSum(device, spec.cols, spec.block_size, sum);
        }
        return NewCudaFullSum(device, spec.cols, sum);
      });
}

}  // namespace quantd::compute
