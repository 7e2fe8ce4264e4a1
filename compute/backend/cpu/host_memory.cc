#include "compute/backend/cpu/host_memory.h"

#include <utility>

namespace quantd::compute {

void MemoryMeter::Add(int64_t bytes) {
  const int64_t now = now_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t peak = peak_.load(std::memory_order_relaxed);
  while (peak < now && !peak_.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
  }
}

HostMemory::HostMemory(Tensor tensor, std::shared_ptr<MemoryMeter> meter)
    : tensor_(std::move(tensor)), meter_(std::move(meter)) {
  meter_->Add(static_cast<int64_t>(tensor_.bytes().size()));
}

HostMemory::~HostMemory() { meter_->Remove(static_cast<int64_t>(tensor_.bytes().size())); }

DeviceTensor Adopt(Stream& stream, Tensor tensor) {
  const DType dtype = tensor.dtype();
  std::vector<int64_t> shape = tensor.shape();
  return DeviceTensor(dtype, std::move(shape),
                      std::make_shared<const HostMemory>(std::move(tensor),
                                                         static_cast<CpuStream&>(stream).meter()));
}

absl::StatusOr<WritableTensor> NewMatrix(Stream& stream, std::vector<int64_t> shape) {
  absl::StatusOr<Tensor> tensor = Tensor::Create(DType::kF64, std::move(shape));
  if (!tensor.ok()) return tensor.status();
  double* data = tensor->as<double>().data();  // moving a tensor leaves its bytes where they are
  return WritableTensor{Adopt(stream, *std::move(tensor)), data};
}

const Tensor& HostTensor(const DeviceTensor& tensor) {
  return static_cast<const HostMemory*>(tensor.memory())->tensor();
}

}  // namespace quantd::compute
