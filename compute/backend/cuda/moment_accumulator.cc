#include "compute/backend/cuda/moment_accumulator.h"

#include <utility>
#include <vector>

#include "compute/backend/cuda/token_sums.h"
#include "compute/backend/token_accumulator.h"

namespace quantd::compute {
namespace {

constexpr int kPinnedSlots = 8;

}  // namespace

absl::StatusOr<std::unique_ptr<MomentAccumulator>> CudaAccumulators::New(
    const MomentSpec& spec, const SecondMoment* start) {
  return NewTokenAccumulator(
      pool_, spec, start,
      [&](std::vector<double> sum) -> absl::StatusOr<std::unique_ptr<TokenSum>> {
        absl::StatusOr<PinnedRing*> ring = Ring();
        if (!ring.ok()) return ring.status();
        if (spec.is_paired()) {
          return NewCudaPairedSum(device_, **ring, spec.paired_cols, spec.cols, sum);
        }
        if (spec.layout == MomentLayout::kBlockDiagonal) {
          return NewCudaBlockSum(device_, **ring, spec.cols, spec.block_size, sum);
        }
        return NewCudaFullSum(device_, pool_, **ring, spec.cols, sum);
      });
}

absl::StatusOr<PinnedRing*> CudaAccumulators::Ring() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (ring_ != nullptr) return ring_.get();
  absl::StatusOr<std::unique_ptr<PinnedRing>> ring = PinnedRing::Create(device_, kPinnedSlots);
  if (!ring.ok()) return ring.status();
  ring_ = *std::move(ring);
  return ring_.get();
}

}  // namespace quantd::compute
