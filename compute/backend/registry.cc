#include "compute/backend/registry.h"

#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "compute/backend/cpu/cpu_backend.h"
#ifdef QUANTD_CUDA
#include "compute/backend/cuda/cuda_backend.h"
#endif

namespace quantd::compute {
namespace {

#ifdef QUANTD_CUDA
constexpr bool kBuiltWithCuda = true;
#else
constexpr bool kBuiltWithCuda = false;
int CountCudaDevices() { return 0; }
absl::StatusOr<std::unique_ptr<Backend>> NewCudaBackend(int /*device*/, int /*cpu_threads*/) {
  return absl::NotFoundError("this build has no CUDA backend");
}
#endif

absl::Status Unknown(absl::string_view list, absl::string_view name) {
  return absl::InvalidArgumentError(absl::StrCat(
      "devices: expected \"auto\" or a list of \"cuda:N\", \"cuda\" and \"cpu\"; got ",
      name.empty() ? "an empty name" : absl::StrCat("\"", name, "\""), " in \"", list, "\""));
}

constexpr int kCpu = -1;

absl::Status AppendDevice(absl::string_view list, absl::string_view name,
                          std::vector<int>& devices) {
  int number = 0;
  absl::string_view rest = name;
  if (name == "cpu") {
    devices.push_back(kCpu);
  } else if (name == "cuda") {
    if (CountCudaDevices() == 0) {
      return absl::NotFoundError(absl::StrCat("devices: no CUDA device: ", WhyNoCuda()));
    }
    for (int i = 0; i < CountCudaDevices(); ++i) devices.push_back(i);
  } else if (absl::ConsumePrefix(&rest, "cuda:") && absl::SimpleAtoi(rest, &number) &&
             number >= 0) {
    devices.push_back(number);
  } else {
    return Unknown(list, name);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int>> ParseDevices(absl::string_view list) {
  if (list == "auto") list = CountCudaDevices() > 0 ? "cuda" : "cpu";
  std::vector<int> devices;
  for (const absl::string_view name : absl::StrSplit(list, ',')) {
    if (absl::Status status = AppendDevice(list, name, devices); !status.ok()) return status;
  }
  if (std::set<int>(devices.begin(), devices.end()).size() != devices.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("devices: expected each device once; got \"", list, "\""));
  }
  return devices;
}

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<Backend>>> OpenBackends(const BackendOptions& options) {
  const absl::StatusOr<std::vector<int>> devices = ParseDevices(options.devices);
  if (!devices.ok()) return devices.status();
  std::vector<std::unique_ptr<Backend>> backends;
  for (const int device : *devices) {
    if (device == kCpu) {
      backends.push_back(NewCpuBackend(options.cpu_threads));
      continue;
    }
    if (device >= CountCudaDevices()) {
      return absl::NotFoundError(absl::StrCat("devices: no cuda:", device, "; there are ",
                                              CountCudaDevices(), " CUDA devices"));
    }
    absl::StatusOr<std::unique_ptr<Backend>> backend = NewCudaBackend(device, options.cpu_threads);
    if (!backend.ok()) return backend.status();
    backends.push_back(*std::move(backend));
  }
  return backends;
}

std::string WhyNoCuda() {
  if (CountCudaDevices() > 0) return "";
  return kBuiltWithCuda ? "the driver reports none"
                        : "this build has no CUDA backend (no CUDA compiler was found)";
}

}  // namespace quantd::compute
