#include "server/ingest/cuda_region.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

constexpr absl::string_view kField = "header.cuda_ipc";
constexpr size_t kHandleBytes = 64;

absl::Status Check(const CudaRegion::Name& name, int64_t label_bytes) {
  if (name.handle.size() != kHandleBytes) {
    return InvalidField(absl::StrCat(kField, ".handle"),
                        absl::StrCat("expected the ", kHandleBytes,
                                     " bytes of a cudaIpcMemHandle_t, got ", name.handle.size()));
  }
  if (name.bytes < label_bytes) {
    return InvalidField(absl::StrCat(kField, ".bytes"),
                        absl::StrCat("expected at least the ", label_bytes,
                                     " bytes of the label in front, got ", name.bytes));
  }
  return absl::OkStatus();
}

absl::Status NoSuchDevice(const std::vector<compute::Backend*>& devices) {
  std::vector<std::string> gpus;
  for (const compute::Backend* device : devices) {
    const compute::DeviceInfo info = device->Describe();
    if (!info.uuid.empty()) gpus.push_back(absl::StrCat(info.name, " is ", info.uuid));
  }
  return FailedPrecondition("NO_SUCH_CUDA_DEVICE", absl::StrCat(kField, ".device_uuid"),
                            absl::StrCat("expected a GPU that this server uses (",
                                         gpus.empty() ? "it uses none" : absl::StrJoin(gpus, ", "),
                                         "), got another one; send the chunks' data instead"));
}

// Errors of compute with the reasons that clients know.
absl::Status WithReason(const absl::Status& status) {
  if (!absl::IsOutOfRange(status)) return status;
  return Error(status.code(), "SHARED_REGION_TOO_SHORT", status.message());
}

absl::Status CannotOpen(const absl::Status& status) {
  if (absl::IsFailedPrecondition(status)) {
    return FailedPrecondition("CUDA_IPC_HANDLE", kField, status.message());
  }
  return Annotate(WithReason(status), kField);
}

}  // namespace

std::string CudaRegion::Label(const std::string& tenant) {
  return absl::StrCat("quantd.", tenant, ".");
}

absl::StatusOr<std::unique_ptr<CudaRegion>> CudaRegion::Open(
    const Name& name, const std::string& tenant, const std::vector<compute::Backend*>& devices) {
  const std::string label = Label(tenant);
  const auto label_bytes = static_cast<int64_t>(label.size());
  if (absl::Status s = Check(name, label_bytes); !s.ok()) return s;
  for (compute::Backend* device : devices) {
    const std::string uuid = device->Describe().uuid;
    if (uuid.empty() || uuid != name.device_uuid) continue;
    auto memory = device->OpenRegion(name.handle, name.bytes);
    if (!memory.ok()) return CannotOpen(memory.status());
    auto region = std::unique_ptr<CudaRegion>(new CudaRegion(*std::move(memory)));
    const absl::StatusOr<std::string> begins = region->Read(0, label_bytes);
    if (!begins.ok()) return Annotate(begins.status(), kField);
    if (*begins == label) return region;
    // Not what it begins with: it is not the caller's.
    return Error(absl::StatusCode::kPermissionDenied, "FOREIGN_TENANT",
                 absl::StrCat(kField, ": expected memory that begins with \"", label,
                              "\", as the caller's must, got other memory"));
  }
  return NoSuchDevice(devices);
}

absl::StatusOr<std::string> CudaRegion::Read(int64_t offset, int64_t bytes) const {
  std::string copy(static_cast<size_t>(bytes), '\0');
  absl::Status status =
      memory_->Read(offset, absl::MakeSpan(reinterpret_cast<std::byte*>(copy.data()), copy.size()));
  if (!status.ok()) return WithReason(status);
  return copy;
}

}  // namespace quantd::server
