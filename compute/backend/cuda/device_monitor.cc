#include "compute/backend/cuda/device_monitor.h"

#include <dlfcn.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace quantd::compute {
namespace {

// Of nvml.h, which not every toolkit has, the few declarations that are used. Its ABI is stable:
// functions that change get a new name.
struct Utilisation {
  unsigned int gpu;     // percent
  unsigned int memory;  // percent of the time in which memory was read or written
};
constexpr int kSuccess = 0;
constexpr int kTemperatureOfGpu = 0;

}  // namespace

// The loaded and initialized library.
class DeviceMonitor::Library {
 public:
  // Null, with why, where it is not there or does not start.
  static std::unique_ptr<const Library> Load(const std::string& name, std::string& why) {
    auto library = std::unique_ptr<Library>(new Library);
    library->handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library->handle_ == nullptr) {
      why = dlerror();
      return nullptr;
    }
    if (const char* const missing = library->Find(); missing != nullptr) {
      why = absl::StrCat(name, " has no ", missing);
      return nullptr;
    }
    if (const int code = library->init_(); code != kSuccess) {
      why = library->Failure("nvmlInit_v2", code);
      return nullptr;
    }
    library->initialized_ = true;
    return library;
  }
  ~Library() {
    if (initialized_) shutdown_();
    if (handle_ != nullptr) dlclose(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  std::string Failure(const char* function, int code) const {
    return absl::StrCat(function, ": ", error_string_(code));
  }

  int (*device_by_bus_id)(const char*, void**) = nullptr;
  int (*utilisation)(void*, Utilisation*) = nullptr;
  int (*power)(void*, unsigned int*) = nullptr;             // milliwatts
  int (*temperature)(void*, int, unsigned int*) = nullptr;  // degrees Celsius

 private:
  Library() = default;

  // The function that it lacks, or null.
  const char* Find() {
    const char* missing = nullptr;
    const auto find = [&](const char* name, auto& function) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle_, name));
      if (function == nullptr && missing == nullptr) missing = name;
    };
    find("nvmlInit_v2", init_);
    find("nvmlShutdown", shutdown_);
    find("nvmlErrorString", error_string_);
    find("nvmlDeviceGetHandleByPciBusId_v2", device_by_bus_id);
    find("nvmlDeviceGetUtilizationRates", utilisation);
    find("nvmlDeviceGetPowerUsage", power);
    find("nvmlDeviceGetTemperature", temperature);
    return missing;
  }

  void* handle_ = nullptr;
  bool initialized_ = false;
  int (*init_)() = nullptr;
  int (*shutdown_)() = nullptr;
  const char* (*error_string_)(int) = nullptr;
};

DeviceMonitor::DeviceMonitor(const std::string& pci_bus_id, const std::string& library)
    : library_(Library::Load(library, unknown_)) {
  if (library_ == nullptr) return;
  if (const int code = library_->device_by_bus_id(pci_bus_id.c_str(), &device_); code != kSuccess) {
    unknown_ = library_->Failure("nvmlDeviceGetHandleByPciBusId_v2", code);
    library_ = nullptr;
  }
}

DeviceMonitor::~DeviceMonitor() = default;

DeviceActivity DeviceMonitor::Read() const {
  DeviceActivity activity = {
      .utilisation = {}, .power_watts = {}, .temperature_celsius = {}, .unknown = unknown_};
  if (library_ == nullptr) return activity;
  const auto read = [&](const char* function, int code) {
    if (code != kSuccess) activity.unknown = library_->Failure(function, code);
    return code == kSuccess;
  };
  Utilisation busy = {};
  if (read("nvmlDeviceGetUtilizationRates", library_->utilisation(device_, &busy))) {
    activity.utilisation = busy.gpu / 100.0;
  }
  unsigned int value = 0;
  if (read("nvmlDeviceGetPowerUsage", library_->power(device_, &value))) {
    activity.power_watts = value / 1000.0;
  }
  if (read("nvmlDeviceGetTemperature", library_->temperature(device_, kTemperatureOfGpu, &value))) {
    activity.temperature_celsius = value;
  }
  return activity;
}

}  // namespace quantd::compute
