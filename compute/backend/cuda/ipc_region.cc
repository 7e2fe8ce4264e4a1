#include "compute/backend/cuda/ipc_region.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"

namespace quantd::compute {
namespace {

// How many bytes there are from `address` to the end of its allocation. The runtime does not tell,
// and the driver is not linked.
absl::StatusOr<int64_t> BytesBehind(const void* address) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  absl::Status status = ToStatus(cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &function,
                                                                  12000, cudaEnableDefault, &found),
                                 "looking for cuMemGetAddressRange");
  if (!status.ok()) return status;
  if (found != cudaDriverEntryPointSuccess) {
    return absl::InternalError("the driver has no cuMemGetAddressRange");
  }
  CUdeviceptr base = 0;
  size_t size = 0;
  const auto pointer = reinterpret_cast<CUdeviceptr>(address);
  const CUresult code =
      reinterpret_cast<decltype(&cuMemGetAddressRange)>(function)(&base, &size, pointer);
  if (code != CUDA_SUCCESS) {
    return absl::InternalError(absl::StrCat("cuMemGetAddressRange: CUDA error ", code));
  }
  return static_cast<int64_t>(base + size - pointer);
}

class IpcRegion final : public DeviceRegion {
 public:
  explicit IpcRegion(CudaDevice& device) : device_(device) {}
  ~IpcRegion() override {
    if (cudaSetDevice(device_.id()) != cudaSuccess) return;
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
    if (memory_ != nullptr) cudaIpcCloseMemHandle(memory_);
    cudaGetLastError();
  }
  IpcRegion(const IpcRegion&) = delete;
  IpcRegion& operator=(const IpcRegion&) = delete;

  absl::Status Open(const cudaIpcMemHandle_t& handle, int64_t bytes) {
    absl::Status status = ToStatus(cudaSetDevice(device_.id()), "selecting the CUDA device");
    if (!status.ok()) return status;
    void* memory = nullptr;
    status = ToStatus(cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess),
                      "opening the CUDA IPC handle");
    // Whatever is wrong with it is the exporter's: gone, of its own process, made up.
    if (!status.ok()) return absl::FailedPreconditionError(status.message());
    memory_ = static_cast<std::byte*>(memory);
    const absl::StatusOr<int64_t> there = BytesBehind(memory_);
    if (!there.ok()) return there.status();
    if (bytes > *there) {
      return absl::OutOfRangeError(absl::StrCat(
          "expected at most the ", *there, " bytes that the handle's allocation has, got ", bytes));
    }
    bytes_ = bytes;
    return ToStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                    "creating a CUDA stream");
  }

  absl::Status Read(int64_t offset, absl::Span<std::byte> to) const override {
    const auto bytes = static_cast<int64_t>(to.size());
    if (offset < 0 || bytes > bytes_ || offset > bytes_ - bytes) {
      return absl::OutOfRangeError(absl::StrCat("expected ", bytes, " bytes at offset ", offset,
                                                " of the device's memory, which has ", bytes_));
    }
    absl::Status status = ToStatus(cudaSetDevice(device_.id()), "selecting the CUDA device");
    if (!status.ok()) return status;
    const absl::StatusOr<PinnedRing*> ring = device_.Ring();
    if (!ring.ok()) return ring.status();
    for (int64_t first = 0; first < bytes && status.ok(); first += PinnedRing::kSlotBytes) {
      const int64_t some = std::min(PinnedRing::kSlotBytes, bytes - first);
      status =
          (*ring)->Receive(stream_, some, memory_ + offset + first, [&](const std::byte* slot) {
            std::memcpy(to.data() + first, slot, static_cast<size_t>(some));
          });
    }
    return status;
  }

 private:
  CudaDevice& device_;
  std::byte* memory_ = nullptr;  // on the device
  int64_t bytes_ = 0;
  cudaStream_t stream_ = nullptr;  // its own: what other streams do is not waited for
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceRegion>> OpenIpcRegion(CudaDevice& device,
                                                            absl::string_view handle,
                                                            int64_t bytes) {
  cudaIpcMemHandle_t memory;
  if (handle.size() != sizeof(memory)) {
    return absl::InvalidArgumentError(absl::StrCat("expected a CUDA IPC handle of ", sizeof(memory),
                                                   " bytes, got ", handle.size()));
  }
  std::memcpy(&memory, handle.data(), sizeof(memory));
  auto region = std::make_unique<IpcRegion>(device);
  if (absl::Status status = region->Open(memory, bytes); !status.ok()) return status;
  return region;
}

}  // namespace quantd::compute
