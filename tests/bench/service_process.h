#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd::bench {

// A child process that prints where it listens; ended with SIGTERM when it is destroyed.
class ServiceProcess {
 public:
  // Starts `command` and reads its stderr until a JSON line with "event": "listening".
  // UNAVAILABLE with what it printed if it ends before.
  static absl::StatusOr<std::unique_ptr<ServiceProcess>> Start(
      const std::vector<std::string>& command);
  ~ServiceProcess();
  ServiceProcess(const ServiceProcess&) = delete;
  ServiceProcess& operator=(const ServiceProcess&) = delete;

  const std::string& address() const { return address_; }

 private:
  ServiceProcess(pid_t pid, int stderr_fd) : pid_(pid), stderr_fd_(stderr_fd) {}

  const pid_t pid_;
  const int stderr_fd_;
  std::string address_;
};

}  // namespace quantd::bench
