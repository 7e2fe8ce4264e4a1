#include "compute/backend/cuda/cuda_device.h"

#include <utility>

#include "compute/backend/cuda/cuda_status.h"

namespace quantd::compute {
namespace {

constexpr int kPinnedSlots = 16;

void Destroy(const CudaDevice::Handles& handles) {
  if (handles.blas != nullptr) cublasDestroy(handles.blas);
  if (handles.solver != nullptr) cusolverDnDestroy(handles.solver);
}

}  // namespace

CudaDevice::~CudaDevice() {
  cudaSetDevice(id_);
  for (const Handles& handles : free_) Destroy(handles);
}

absl::StatusOr<PinnedRing*> CudaDevice::Ring() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (ring_ != nullptr) return ring_.get();
  absl::StatusOr<std::unique_ptr<PinnedRing>> ring = PinnedRing::Create(id_, kPinnedSlots);
  if (!ring.ok()) return ring.status();
  ring_ = *std::move(ring);
  return ring_.get();
}

absl::StatusOr<CudaDevice::Handles> CudaDevice::TakeHandles() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      const Handles handles = free_.back();
      free_.pop_back();
      return handles;
    }
  }
  absl::Status status = ToStatus(cudaSetDevice(id_), "selecting the CUDA device");
  Handles handles;
  if (status.ok()) status = ToStatus(cublasCreate(&handles.blas), "creating a cuBLAS handle");
  if (status.ok()) {
    status = ToStatus(cusolverDnCreate(&handles.solver), "creating a cuSOLVER handle");
  }
  if (status.ok()) return handles;
  Destroy(handles);
  return status;
}

void CudaDevice::GiveBack(Handles handles) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(handles);
}

}  // namespace quantd::compute
