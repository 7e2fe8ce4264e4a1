#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_device.h"

namespace quantd::compute {

// A CUDA stream with what its ops need: library handles bound to it and its device memory, which is
// allocated and freed in the order of the stream. An op's .cc queues work here and returns; only
// reading a result on the host waits. Tensors are used on the stream that made them.
// Whoever uses it in a thread first makes its device current (Enter).
class CudaStream final : public Stream {
 public:
  // What outlives the stream: the memory of tensors is freed on it.
  class Queue;

  static absl::StatusOr<std::unique_ptr<CudaStream>> Create(CudaDevice& device,
                                                            const CancelFlag* cancel);
  ~CudaStream() override;

  absl::Status Synchronize() override;
  int64_t peak_bytes() const override;

  // Makes the stream's device the calling thread's, and refuses a cancelled stream.
  absl::Status Enter() const;

  CudaDevice& device() const { return device_; }
  cudaStream_t get() const;
  cublasHandle_t blas() const { return handles_.blas; }  // pointers to scalars are host pointers
  cusolverDnHandle_t solver() const { return handles_.solver; }
  const std::shared_ptr<Queue>& queue() const { return queue_; }

 private:
  CudaStream(CudaDevice& device, const CancelFlag* cancel, std::shared_ptr<Queue> queue)
      : Stream(cancel), device_(device), queue_(std::move(queue)) {}

  CudaDevice& device_;
  std::shared_ptr<Queue> queue_;
  CudaDevice::Handles handles_;
};

}  // namespace quantd::compute
