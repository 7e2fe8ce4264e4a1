#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "compute/backend/cuda/cuda_stream.h"

namespace quantd::compute {

// The cudaStream_t and the count of its memory. Every piece of memory holds it, so that it can be
// freed in order whatever is destroyed first. Allocation comes from the device's default pool,
// which keeps what was freed for the next layer.
class CudaStream::Queue {
 public:
  explicit Queue(int device) : device_(device) {}
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  absl::Status Open();

  int device() const { return device_; }
  cudaStream_t get() const { return stream_; }

  // Counted bytes in the order of the stream.
  cudaError_t Allocate(int64_t bytes, void** data);
  void Free(void* data, int64_t bytes);
  int64_t peak_bytes() const { return peak_.load(std::memory_order_relaxed); }

 private:
  const int device_;
  cudaStream_t stream_ = nullptr;
  std::atomic<int64_t> now_{0};
  std::atomic<int64_t> peak_{0};
};

}  // namespace quantd::compute
