#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quantd::compute {

// A point in the order of a stream that other streams and the host wait for. Movable.
class CudaEvent {
 public:
  static absl::StatusOr<CudaEvent> Create();
  CudaEvent() = default;
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~CudaEvent();

  // Now: all that `stream` holds. Before the first call the event has happened.
  absl::Status Record(cudaStream_t stream);
  // What is queued on `stream` from here on waits for what was recorded.
  absl::Status HoldUp(cudaStream_t stream) const;
  absl::Status Wait() const;  // of the host

 private:
  explicit CudaEvent(cudaEvent_t event) : event_(event) {}

  cudaEvent_t event_ = nullptr;
};

}  // namespace quantd::compute
