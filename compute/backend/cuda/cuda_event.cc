#include "compute/backend/cuda/cuda_event.h"

#include "compute/backend/cuda/cuda_status.h"

namespace quantd::compute {

absl::StatusOr<CudaEvent> CudaEvent::Create() {
  cudaEvent_t event = nullptr;
  absl::Status status =
      ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  if (!status.ok()) return status;
  return CudaEvent(event);
}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

absl::Status CudaEvent::Record(cudaStream_t stream) {
  return ToStatus(cudaEventRecord(event_, stream), "recording an event");
}
absl::Status CudaEvent::HoldUp(cudaStream_t stream) const {
  return ToStatus(cudaStreamWaitEvent(stream, event_, 0), "waiting for an event");
}
absl::Status CudaEvent::Wait() const {
  return ToStatus(cudaEventSynchronize(event_), "waiting for an event");
}

}  // namespace quantd::compute
