#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/cuda_event.h"

namespace quantd::compute {

// Pinned host memory that large copies pass through, so that they run at the link's speed and
// beside what the device computes. One a device: many streams cost no more pinned memory than one.
// Thread-safe.
class PinnedRing {
 public:
  static constexpr int64_t kSlotBytes = int64_t{4} << 20;

  // Takes `slots` x kSlotBytes of host memory.
  static absl::StatusOr<std::unique_ptr<PinnedRing>> Create(int device, int slots);
  ~PinnedRing();
  PinnedRing(const PinnedRing&) = delete;
  PinnedRing& operator=(const PinnedRing&) = delete;

  // Lets `fill` write `bytes` <= kSlotBytes and queues their copy to the device on `stream`, behind
  // at most one wait for a slot that is still being copied. False, and nothing is copied, where
  // `fill` says so. The ring's device is the calling thread's.
  absl::StatusOr<bool> Send(cudaStream_t stream, int64_t bytes, void* to,
                            absl::FunctionRef<bool(std::byte* slot)> fill);
  // Copies `bytes` <= kSlotBytes from the device in the order of `stream`, waits for them and lets
  // `drain` read them.
  absl::Status Receive(cudaStream_t stream, int64_t bytes, const void* from,
                       absl::FunctionRef<void(const std::byte* slot)> drain);

 private:
  struct Slot {
    std::byte* memory;
    CudaEvent copied;
  };

  PinnedRing() = default;
  Slot Take();
  void Return(Slot slot);

  std::mutex mutex_;
  std::condition_variable returned_;
  std::deque<Slot> free_;  // the one that has waited longest first; guarded by mutex_
  std::byte* memory_ = nullptr;
};

}  // namespace quantd::compute
