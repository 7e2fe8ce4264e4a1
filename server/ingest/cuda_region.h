#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "server/ingest/client_region.h"

namespace quantd::server {

// Memory of a GPU that a client on this host has allocated and exported (CUDA IPC). It is closed
// with the object: before that, the client must not free it.
class CudaRegion final : public ClientRegion {
 public:
  struct Name {
    std::string handle;       // cudaIpcMemHandle_t
    std::string device_uuid;  // "GPU-..."
    int64_t bytes = 0;        // of the allocation, as the client says
  };
  // How the memory that `tenant` may name begins. A handle says nothing about who made it, and
  // CUDA does not promise that none can be guessed.
  static std::string Label(const std::string& tenant);

  // INVALID_ARGUMENT for what is no handle or has no bytes. FAILED_PRECONDITION where none of
  // `devices`, which outlive the region, is that device, and for a handle that does not open.
  // OUT_OF_RANGE where the allocation is shorter. PERMISSION_DENIED where it does not begin with
  // the tenant's label.
  static absl::StatusOr<std::unique_ptr<CudaRegion>> Open(
      const Name& name, const std::string& tenant, const std::vector<compute::Backend*>& devices);

  absl::StatusOr<std::string> Read(int64_t offset, int64_t bytes) const override;
  bool crc_optional() const override { return true; }

 private:
  explicit CudaRegion(std::unique_ptr<compute::DeviceRegion> memory) : memory_(std::move(memory)) {}

  const std::unique_ptr<compute::DeviceRegion> memory_;
};

}  // namespace quantd::server
