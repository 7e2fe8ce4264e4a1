#include "compute/backend/cuda/pinned_ring.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"

namespace quantd::compute {

absl::StatusOr<std::unique_ptr<PinnedRing>> PinnedRing::Create(int device, int slots) {
  absl::Status status = ToStatus(cudaSetDevice(device), "selecting the CUDA device");
  if (!status.ok()) return status;
  std::unique_ptr<PinnedRing> ring(new PinnedRing);
  void* memory = nullptr;
  status = ToStatus(cudaMallocHost(&memory, static_cast<size_t>(slots) * kSlotBytes),
                    absl::StrCat("pinning ", slots * kSlotBytes, " bytes of host memory"));
  if (!status.ok()) return status;
  ring->memory_ = static_cast<std::byte*>(memory);
  for (int i = 0; i < slots; ++i) {
    absl::StatusOr<CudaEvent> copied = CudaEvent::Create();
    if (!copied.ok()) return copied.status();
    ring->free_.push_back({ring->memory_ + i * kSlotBytes, *std::move(copied)});
  }
  return ring;
}

PinnedRing::~PinnedRing() {
  for (const Slot& slot : free_) static_cast<void>(slot.copied.Wait());
  if (memory_ != nullptr) cudaFreeHost(memory_);
}

absl::StatusOr<bool> PinnedRing::Send(cudaStream_t stream, int64_t bytes, void* to,
                                      absl::FunctionRef<bool(std::byte* slot)> fill) {
  Slot slot = Take();
  absl::Status status = slot.copied.Wait();
  const bool filled = status.ok() && fill(slot.memory);
  if (filled) {
    status = ToStatus(cudaMemcpyAsync(to, slot.memory, static_cast<size_t>(bytes),
                                      cudaMemcpyHostToDevice, stream),
                      "copying to the device");
    // Also after an error: the slot must not be taken for free while something may still read it.
    absl::Status recorded = slot.copied.Record(stream);
    if (status.ok()) status = recorded;
  }
  Return(std::move(slot));
  if (!status.ok()) return status;
  return filled;
}

absl::Status PinnedRing::Receive(cudaStream_t stream, int64_t bytes, const void* from,
                                 absl::FunctionRef<void(const std::byte* slot)> drain) {
  Slot slot = Take();
  absl::Status status = slot.copied.Wait();
  if (status.ok()) {
    status = ToStatus(cudaMemcpyAsync(slot.memory, from, static_cast<size_t>(bytes),
                                      cudaMemcpyDeviceToHost, stream),
                      "copying from the device");
    absl::Status recorded = slot.copied.Record(stream);
    if (status.ok()) status = recorded;
    if (status.ok()) status = slot.copied.Wait();
    if (status.ok()) drain(slot.memory);
  }
  Return(std::move(slot));
  return status;
}

PinnedRing::Slot PinnedRing::Take() {
  std::unique_lock<std::mutex> lock(mutex_);
  returned_.wait(lock, [&] { return !free_.empty(); });
  Slot slot = std::move(free_.front());
  free_.pop_front();
  return slot;
}

void PinnedRing::Return(Slot slot) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(slot));
  }
  returned_.notify_one();
}

}  // namespace quantd::compute
