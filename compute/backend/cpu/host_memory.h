#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// Bytes that the tensors of one stream hold now and held at most. Thread-safe.
class MemoryMeter {
 public:
  void Add(int64_t bytes);
  void Remove(int64_t bytes) { now_.fetch_sub(bytes, std::memory_order_relaxed); }
  int64_t peak() const { return peak_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> now_{0};
  std::atomic<int64_t> peak_{0};
};

// The stream of the CPU backend: ops run in the calling thread, which the pool's workers help.
class CpuStream final : public Stream {
 public:
  explicit CpuStream(const CancelFlag* cancel) : Stream(cancel) {}
  absl::Status Synchronize() override { return CheckCancelled(); }
  int64_t peak_bytes() const override { return meter_->peak(); }
  const std::shared_ptr<MemoryMeter>& meter() const { return meter_; }

 private:
  const std::shared_ptr<MemoryMeter> meter_ = std::make_shared<MemoryMeter>();
};

// A tensor's memory on the CPU backend: a host tensor, metered. Written by the op that makes it,
// through the span that Create returns, and never after.
class HostMemory final : public DeviceTensor::Memory {
 public:
  HostMemory(Tensor tensor, std::shared_ptr<MemoryMeter> meter);
  ~HostMemory() override;

  const Tensor& tensor() const { return tensor_; }

 private:
  Tensor tensor_;
  std::shared_ptr<MemoryMeter> meter_;
};

// Moves a host tensor under the stream's meter.
DeviceTensor Adopt(Stream& stream, Tensor tensor);
// A new F64 tensor and where to write it. RESOURCE_EXHAUSTED.
struct WritableTensor {
  DeviceTensor tensor;
  double* data;
};
absl::StatusOr<WritableTensor> NewMatrix(Stream& stream, std::vector<int64_t> shape);

// The host tensor behind a device tensor of the CPU backend.
const Tensor& HostTensor(const DeviceTensor& tensor);
inline const double* Doubles(const DeviceTensor& tensor) {
  return HostTensor(tensor).as<double>().data();
}

}  // namespace quantd::compute
