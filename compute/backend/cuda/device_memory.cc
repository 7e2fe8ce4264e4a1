#include "compute/backend/cuda/device_memory.h"

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
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
                                                     " free bytes; cuda:", stream.device(), " has ",
                                                     free, " of ", total));
  }
  if (code != cudaSuccess) return ToStatus(code, "allocating device memory");
  return std::shared_ptr<CudaMemory>(new CudaMemory(stream.queue(), data, bytes));
}

CudaMemory::CudaMemory(std::shared_ptr<CudaStream::Queue> queue, void* data, int64_t bytes)
    : queue_(std::move(queue)), data_(data), bytes_(bytes) {}

CudaMemory::~CudaMemory() { queue_->Free(data_, bytes_); }

absl::Status CopyBytesToDevice(CudaStream& stream, const void* from, int64_t bytes, void* to) {
  if (bytes == 0) return absl::OkStatus();
  absl::Status status = ToStatus(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream.get()),
      "copying to the device");
  if (!status.ok()) return status;
  // Pageable memory is staged before the call returns only where it is small: wait for it.
  return ToStatus(cudaStreamSynchronize(stream.get()), "copying to the device");
}

absl::Status CopyBytesToHost(CudaStream& stream, const void* from, int64_t bytes, void* to) {
  if (bytes == 0) return absl::OkStatus();
  absl::Status status = ToStatus(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream.get()),
      "copying from the device");
  if (!status.ok()) return status;
  return ToStatus(cudaStreamSynchronize(stream.get()), "copying from the device");
}

}  // namespace quantd::compute
