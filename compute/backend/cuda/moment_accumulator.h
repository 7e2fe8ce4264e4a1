#pragma once

#include <memory>
#include <mutex>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"
#include "compute/backend/cuda/pinned_ring.h"

namespace quantd::compute {

// Makes the MomentAccumulators of one device, which share its pinned memory. It must outlive them.
// Each has streams of its own. Where its arithmetic differs from the CPU's: token_sums.h.
// Thread-safe.
class CudaAccumulators {
 public:
  // `cpu_threads` convert tokens on the host (0: one a core).
  CudaAccumulators(int device, int cpu_threads) : device_(device), pool_(cpu_threads) {}

  // As Backend::NewAccumulator.
  absl::StatusOr<std::unique_ptr<MomentAccumulator>> New(const MomentSpec& spec,
                                                         const SecondMoment* start);

 private:
  absl::StatusOr<PinnedRing*> Ring();

  const int device_;
  WorkerPool pool_;
  std::mutex mutex_;
  std::unique_ptr<PinnedRing> ring_;  // made when first needed; guarded by mutex_
};

}  // namespace quantd::compute
