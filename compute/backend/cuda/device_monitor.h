#pragma once

#include <memory>
#include <string>

#include "compute/backend/backend.h"

namespace quantd::compute {

// What NVIDIA's management library (NVML), which comes with the driver, says about one GPU. It is
// loaded at run time, so that nothing depends on its being there. Thread-safe.
class DeviceMonitor {
 public:
  // `pci_bus_id` as cudaDeviceGetPCIBusId writes it: unlike an index, it does not depend on
  // CUDA_VISIBLE_DEVICES. `library` is another one in tests.
  explicit DeviceMonitor(const std::string& pci_bus_id,
                         const std::string& library = "libnvidia-ml.so.1");
  ~DeviceMonitor();

  // Never fails: what cannot be read is empty, and `unknown` says why.
  DeviceActivity Read() const;

 private:
  class Library;
  std::string unknown_;                     // before `library_`, which says why it is null
  std::unique_ptr<const Library> library_;  // null: nothing is known
  void* device_ = nullptr;                  // nvmlDevice_t
};

}  // namespace quantd::compute
