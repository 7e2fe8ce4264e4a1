#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/tensor/tensor.h"

// Device memory of the CUDA backend: what is behind its DeviceTensors, and scratch of one op.
namespace quantd::compute {

// Bytes on the device, allocated and freed in the order of a stream and counted by it.
class CudaMemory final : public DeviceTensor::Memory {
 public:
  // RESOURCE_EXHAUSTED with the sizes where the device has less.
  static absl::StatusOr<std::shared_ptr<CudaMemory>> Allocate(CudaStream& stream, int64_t bytes);
  ~CudaMemory() override;
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  void* data() const { return data_; }

 private:
  CudaMemory(std::shared_ptr<CudaStream::Queue> queue, void* data, int64_t bytes);

  std::shared_ptr<CudaStream::Queue> queue_;
  void* data_;
  int64_t bytes_;
};

// `count` elements of scratch. Movable; the memory is free for later ops of the stream when the
// last holder is gone, also while queued work still uses it.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static absl::StatusOr<DeviceBuffer> Allocate(CudaStream& stream, int64_t count) {
    absl::StatusOr<std::shared_ptr<CudaMemory>> memory =
        CudaMemory::Allocate(stream, count * static_cast<int64_t>(sizeof(T)));
    if (!memory.ok()) return memory.status();
    return DeviceBuffer(*std::move(memory), count);
  }
  T* data() const { return static_cast<T*>(memory_ == nullptr ? nullptr : memory_->data()); }
  int64_t size() const { return count_; }

 private:
  DeviceBuffer(std::shared_ptr<CudaMemory> memory, int64_t count)
      : memory_(std::move(memory)), count_(count) {}

  std::shared_ptr<CudaMemory> memory_;
  int64_t count_ = 0;
};

// A new tensor (uninitialized) and where to write it.
template <typename T>
struct NewTensor {
  DeviceTensor tensor;
  T* data = nullptr;
};
template <typename T>
absl::StatusOr<NewTensor<T>> NewDeviceTensor(CudaStream& stream, DType dtype,
                                             std::vector<int64_t> shape) {
  int64_t bytes = static_cast<int64_t>(SizeOf(dtype));
  for (const int64_t size : shape) bytes *= size;
  absl::StatusOr<std::shared_ptr<CudaMemory>> memory = CudaMemory::Allocate(stream, bytes);
  if (!memory.ok()) return memory.status();
  T* const data = static_cast<T*>((*memory)->data());
  return NewTensor<T>{.tensor = DeviceTensor(dtype, std::move(shape), *std::move(memory)),
                      .data = data};
}
inline absl::StatusOr<NewTensor<double>> NewDoubles(CudaStream& stream,
                                                    std::vector<int64_t> shape) {
  return NewDeviceTensor<double>(stream, DType::kF64, std::move(shape));
}

// The device memory behind a tensor of this backend; null for an empty tensor.
template <typename T>
const T* DeviceData(const DeviceTensor& tensor) {
  if (tensor.empty()) return nullptr;
  return static_cast<const T*>(static_cast<const CudaMemory*>(tensor.memory())->data());
}

// Copies that may return before they are done only where that cannot be noticed: the host memory is
// free for reuse when CopyToDevice returns, and written when CopyToHost returns.
absl::Status CopyBytesToDevice(CudaStream& stream, const void* from, int64_t bytes, void* to);
absl::Status CopyBytesToHost(CudaStream& stream, const void* from, int64_t bytes, void* to);

template <typename T>
absl::Status CopyToDevice(CudaStream& stream, absl::Span<const T> from, T* to) {
  return CopyBytesToDevice(stream, from.data(), static_cast<int64_t>(from.size() * sizeof(T)), to);
}
template <typename T>
absl::StatusOr<DeviceBuffer<T>> Upload(CudaStream& stream, absl::Span<const T> from) {
  auto buffer = DeviceBuffer<T>::Allocate(stream, static_cast<int64_t>(from.size()));
  if (!buffer.ok()) return buffer.status();
  if (absl::Status s = CopyToDevice(stream, from, buffer->data()); !s.ok()) return s;
  return buffer;
}
template <typename T>
absl::StatusOr<std::vector<T>> CopyToHost(CudaStream& stream, const T* from, int64_t count) {
  std::vector<T> to(count);
  absl::Status status =
      CopyBytesToHost(stream, from, count * static_cast<int64_t>(sizeof(T)), to.data());
  if (!status.ok()) return status;
  return to;
}

}  // namespace quantd::compute
