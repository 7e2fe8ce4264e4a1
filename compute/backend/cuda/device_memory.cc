#include "compute/backend/cuda/device_memory.h"

#include <cstring>
#include <mutex>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/pinned_ring.h"
#include "compute/backend/cuda/stream_queue.h"

namespace quantd::compute {

absl::StatusOr<std::shared_ptr<CudaMemory>> CudaMemory::Allocate(CudaStream& stream,
                                                                 int64_t bytes) {
  void* data = nullptr;
  const cudaError_t code = stream.queue()->Allocate(bytes, &data);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0;
    size_t total = 0;
    cudaMemGetInfo(&free, &total);
    return absl::ResourceExhaustedError(absl::StrCat("device memory: expected ", bytes,
                                                     " free bytes; cuda:", stream.device().id(),
                                                     " has ", free, " of ", total));
  }
  if (code != cudaSuccess) return ToStatus(code, "allocating device memory");
  return std::shared_ptr<CudaMemory>(new CudaMemory(stream.queue(), data, bytes));
}

CudaMemory::CudaMemory(std::shared_ptr<CudaStream::Queue> queue, void* data, int64_t bytes)
    : queue_(std::move(queue)), data_(data), bytes_(bytes) {}

CudaMemory::~CudaMemory() { queue_->Free(data_, bytes_); }

namespace {

// Larger copies go through pinned memory on several threads: one thread moves pageable memory at a
// tenth of the link's speed.
constexpr int64_t kDirectBytes = int64_t{1} << 20;

// Runs copy(ring, first, bytes) for the pieces of [0, bytes).
absl::Status CopyInPieces(
    CudaStream& stream, int64_t bytes,
    absl::FunctionRef<absl::Status(PinnedRing& ring, int64_t first, int64_t bytes)> copy) {
  const absl::StatusOr<PinnedRing*> ring = stream.device().Ring();
  if (!ring.ok()) return ring.status();
  std::mutex mutex;
  absl::Status first_error;
  stream.device().pool().ParallelFor(
      0, bytes, PinnedRing::kSlotBytes, [&](int64_t begin, int64_t end) {
        absl::Status status =
            ToStatus(cudaSetDevice(stream.device().id()), "selecting the CUDA device");
        if (status.ok()) status = copy(**ring, begin, end - begin);
        const std::lock_guard<std::mutex> lock(mutex);
        first_error.Update(status);
      });
  return first_error;
}

}  // namespace

absl::Status CopyBytesToDevice(CudaStream& stream, const void* from, int64_t bytes, void* to) {
  if (bytes == 0) return absl::OkStatus();
  if (bytes > kDirectBytes) {
    return CopyInPieces(stream, bytes,
                        [&](PinnedRing& ring, int64_t first, int64_t some) -> absl::Status {
                          return ring
                              .Send(stream.get(), some, static_cast<std::byte*>(to) + first,
                                    [&](std::byte* slot) {
                                      std::memcpy(slot, static_cast<const std::byte*>(from) + first,
                                                  static_cast<size_t>(some));
                                      return true;
                                    })
                              .status();
                        });
  }
  absl::Status status = ToStatus(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream.get()),
      "copying to the device");
  if (!status.ok()) return status;
  // Pageable memory is staged before the call returns only where it is small: wait for it.
  return ToStatus(cudaStreamSynchronize(stream.get()), "copying to the device");
}

absl::Status CopyBytesToHost(CudaStream& stream, const void* from, int64_t bytes, void* to) {
  if (bytes == 0) return absl::OkStatus();
  if (bytes > kDirectBytes) {
    // Here, and not in threads of the pool, which others need, too.
    absl::Status status = ToStatus(cudaStreamSynchronize(stream.get()), "copying from the device");
    if (!status.ok()) return status;
    return CopyInPieces(stream, bytes, [&](PinnedRing& ring, int64_t first, int64_t some) {
      return ring.Receive(stream.get(), some, static_cast<const std::byte*>(from) + first,
                          [&](const std::byte* slot) {
                            std::memcpy(static_cast<std::byte*>(to) + first, slot,
                                        static_cast<size_t>(some));
                          });
    });
  }
  absl::Status status = ToStatus(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream.get()),
      "copying from the device");
  if (!status.ok()) return status;
  return ToStatus(cudaStreamSynchronize(stream.get()), "copying from the device");
}

}  // namespace quantd::compute
