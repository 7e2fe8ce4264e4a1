#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/cuda_event.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/backend/cuda/pinned_ring.h"

namespace quantd::compute {

// The two streams of one accumulator: tokens come to the device on one while the other multiplies
// those that came before. Device memory belongs to the compute stream.
class TokenTransfer {
 public:
  static absl::StatusOr<std::unique_ptr<TokenTransfer>> Create(CudaDevice& device);
  ~TokenTransfer();
  TokenTransfer(const TokenTransfer&) = delete;
  TokenTransfer& operator=(const TokenTransfer&) = delete;

  // Makes the device the calling thread's: whatever else is called comes after it.
  absl::Status Enter() { return compute_->Enter(); }

  CudaStream& compute() { return *compute_; }
  cudaStream_t copies() const { return copies_; }

  // What is queued from here on runs after all that the other stream holds now.
  absl::Status ComputeAfterCopies();
  absl::Status CopiesAfterCompute();

  // Queues a copy on copies(); the host memory is free for reuse when it returns.
  absl::Status Send(const std::byte* from, int64_t bytes, void* to);
  // PinnedRing::Send on copies().
  absl::StatusOr<bool> SendFilled(int64_t bytes, void* to,
                                  absl::FunctionRef<bool(std::byte* slot)> fill) {
    return ring_.Send(copies_, bytes, to, fill);
  }

 private:
  explicit TokenTransfer(PinnedRing& ring) : ring_(ring) {}

  PinnedRing& ring_;
  std::unique_ptr<CudaStream> compute_;
  cudaStream_t copies_ = nullptr;
  CudaEvent order_;
};

}  // namespace quantd::compute
