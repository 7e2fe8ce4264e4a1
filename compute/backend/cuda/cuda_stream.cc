#include "compute/backend/cuda/cuda_stream.h"

#include <utility>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/stream_queue.h"

namespace quantd::compute {

absl::StatusOr<std::unique_ptr<CudaStream>> CudaStream::Create(int device,
                                                               const CancelFlag* cancel) {
  absl::Status status = ToStatus(cudaSetDevice(device), "selecting the CUDA device");
  if (!status.ok()) return status;
  auto queue = std::make_shared<Queue>(device);
  status = queue->Open();
  if (!status.ok()) return status;
  std::unique_ptr<CudaStream> stream(new CudaStream(cancel, std::move(queue)));
  status = ToStatus(cublasCreate(&stream->blas_), "creating a cuBLAS handle");
  if (status.ok())
    status = ToStatus(cusolverDnCreate(&stream->solver_), "creating a cuSOLVER handle");
  if (status.ok())
    status = ToStatus(cublasSetStream(stream->blas_, stream->get()), "cublasSetStream");
  if (status.ok()) {
    status = ToStatus(cusolverDnSetStream(stream->solver_, stream->get()), "cusolverDnSetStream");
  }
  if (!status.ok()) return status;
  return stream;
}

CudaStream::~CudaStream() {
  cudaSetDevice(device());
  if (blas_ != nullptr) cublasDestroy(blas_);
  if (solver_ != nullptr) cusolverDnDestroy(solver_);
}

absl::Status CudaStream::Synchronize() {
  if (absl::Status status = Enter(); !status.ok()) return status;
  return ToStatus(cudaStreamSynchronize(get()), "running the layer");
}

int64_t CudaStream::peak_bytes() const { return queue_->peak_bytes(); }

absl::Status CudaStream::Enter() const {
  if (absl::Status status = CheckCancelled(); !status.ok()) return status;
  return ToStatus(cudaSetDevice(device()), "selecting the CUDA device");
}

int CudaStream::device() const { return queue_->device(); }
cudaStream_t CudaStream::get() const { return queue_->get(); }

}  // namespace quantd::compute
