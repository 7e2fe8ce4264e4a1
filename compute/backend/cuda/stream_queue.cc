#include "compute/backend/cuda/stream_queue.h"

#include <algorithm>
#include <cstdint>

#include "compute/backend/cuda/cuda_status.h"

namespace quantd::compute {

absl::Status CudaStream::Queue::Open() {
  cudaMemPool_t pool = nullptr;
  absl::Status status =
      ToStatus(cudaDeviceGetDefaultMemPool(&pool, device_), "opening the memory pool");
  if (!status.ok()) return status;
  uint64_t keep = UINT64_MAX;
  status = ToStatus(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep),
                    "setting up the memory pool");
  if (!status.ok()) return status;
  return ToStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}

CudaStream::Queue::~Queue() {
  if (stream_ == nullptr) return;
  cudaSetDevice(device_);
  cudaStreamDestroy(stream_);
}

cudaError_t CudaStream::Queue::Allocate(int64_t bytes, void** data) {
  const cudaError_t code =
      cudaMallocAsync(data, static_cast<size_t>(std::max<int64_t>(bytes, 1)), stream_);
  if (code != cudaSuccess) return code;
  const int64_t now = now_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t peak = peak_.load(std::memory_order_relaxed);
  while (now > peak && !peak_.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
  }
  return cudaSuccess;
}

void CudaStream::Queue::Free(void* data, int64_t bytes) {
  cudaFreeAsync(data, stream_);
  now_.fetch_sub(bytes, std::memory_order_relaxed);
}

}  // namespace quantd::compute
