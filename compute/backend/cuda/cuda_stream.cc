#include "compute/backend/cuda/cuda_stream.h"

#include <utility>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/stream_queue.h"

namespace quantd::compute {

absl::StatusOr<std::unique_ptr<CudaStream>> CudaStream::Create(CudaDevice& device,
                                                               const CancelFlag* cancel) {
  absl::Status status = ToStatus(cudaSetDevice(device.id()), "selecting the CUDA device");
  if (!status.ok()) return status;
  auto queue = std::make_shared<Queue>(device.id());
  status = queue->Open();
  if (!status.ok()) return status;
  std::unique_ptr<CudaStream> stream(new CudaStream(device, cancel, std::move(queue)));
  absl::StatusOr<CudaDevice::Handles> handles = device.TakeHandles();
  if (!handles.ok()) return handles.status();
  stream->handles_ = *handles;
  status = ToStatus(cublasSetStream(handles->blas, stream->get()), "cublasSetStream");
  if (!status.ok()) return status;
  status = ToStatus(cusolverDnSetStream(handles->solver, stream->get()), "cusolverDnSetStream");
  if (!status.ok()) return status;
  return stream;
}

CudaStream::~CudaStream() {
  if (handles_.blas == nullptr) return;
  // The handles' workspaces may be used on another stream as soon as they are given back.
  cudaSetDevice(device_.id());
  cudaStreamSynchronize(get());
  device_.GiveBack(handles_);
}

absl::Status CudaStream::Synchronize() {
  if (absl::Status status = Enter(); !status.ok()) return status;
  return ToStatus(cudaStreamSynchronize(get()), "running the layer");
}

int64_t CudaStream::peak_bytes() const { return queue_->peak_bytes(); }

absl::Status CudaStream::Enter() const {
  if (absl::Status status = CheckCancelled(); !status.ok()) return status;
  return ToStatus(cudaSetDevice(device_.id()), "selecting the CUDA device");
}

cudaStream_t CudaStream::get() const { return queue_->get(); }

}  // namespace quantd::compute
