#include "compute/backend/cuda/token_transfer.h"

#include <algorithm>
#include <cstring>

#include "compute/backend/cuda/cuda_status.h"

namespace quantd::compute {

absl::StatusOr<std::unique_ptr<TokenTransfer>> TokenTransfer::Create(CudaDevice& device) {
  absl::StatusOr<PinnedRing*> ring = device.Ring();
  if (!ring.ok()) return ring.status();
  std::unique_ptr<TokenTransfer> transfer(new TokenTransfer(**ring));
  absl::StatusOr<std::unique_ptr<CudaStream>> compute = CudaStream::Create(device, nullptr);
  if (!compute.ok()) return compute.status();
  transfer->compute_ = *std::move(compute);
  absl::Status status = ToStatus(
      cudaStreamCreateWithFlags(&transfer->copies_, cudaStreamNonBlocking), "creating a stream");
  if (!status.ok()) return status;
  absl::StatusOr<CudaEvent> order = CudaEvent::Create();
  if (!order.ok()) return order.status();
  transfer->order_ = *std::move(order);
  return transfer;
}

TokenTransfer::~TokenTransfer() {
  if (copies_ == nullptr) return;
  // Device memory is freed in the order of the compute stream, which knows nothing of copies.
  cudaSetDevice(compute_->device().id());
  cudaStreamSynchronize(copies_);
  cudaStreamDestroy(copies_);
}

absl::Status TokenTransfer::ComputeAfterCopies() {
  if (absl::Status status = order_.Record(copies_); !status.ok()) return status;
  return order_.HoldUp(compute_->get());
}

absl::Status TokenTransfer::CopiesAfterCompute() {
  if (absl::Status status = order_.Record(compute_->get()); !status.ok()) return status;
  return order_.HoldUp(copies_);
}

absl::Status TokenTransfer::Send(const std::byte* from, int64_t bytes, void* to) {
  for (int64_t done = 0; done < bytes; done += PinnedRing::kSlotBytes) {
    const int64_t some = std::min(PinnedRing::kSlotBytes, bytes - done);
    absl::StatusOr<bool> sent =
        SendFilled(some, static_cast<std::byte*>(to) + done, [&](std::byte* slot) {
          std::memcpy(slot, from + done, static_cast<size_t>(some));
          return true;
        });
    if (!sent.ok()) return sent.status();
  }
  return absl::OkStatus();
}

}  // namespace quantd::compute
