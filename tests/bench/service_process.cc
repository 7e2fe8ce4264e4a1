#include "tests/bench/service_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace quantd::bench {
namespace {

std::optional<std::string> AddressOf(const std::string& line) {
  const nlohmann::json entry = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!entry.is_object() || entry.value("event", "") != "listening") return std::nullopt;
  return entry.value("address", "");
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServiceProcess>> ServiceProcess::Start(
    const std::vector<std::string>& command) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe2");
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);  // an interrupted benchmark leaves no server behind
    dup2(fds[1], STDERR_FILENO);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  close(fds[1]);
  if (pid < 0) {
    close(fds[0]);
    return absl::ErrnoToStatus(errno, "fork");
  }
  auto process = std::unique_ptr<ServiceProcess>(new ServiceProcess(pid, fds[0]));

  std::string printed;
  std::string line;
  char byte = 0;
  while (read(fds[0], &byte, 1) == 1) {
    printed.push_back(byte);
    if (byte != '\n') {
      line.push_back(byte);
      continue;
    }
    if (auto address = AddressOf(line); address.has_value()) {
      process->address_ = std::move(*address);
      return process;
    }
    line.clear();
  }
  return absl::UnavailableError(absl::StrCat(command[0], " ended before it listened: ", printed));
}

ServiceProcess::~ServiceProcess() {
  kill(pid_, SIGTERM);
  // Reads what it still says, so that it never waits for the pipe.
  char rest[4096];
  while (read(stderr_fd_, rest, sizeof(rest)) > 0) {
  }
  close(stderr_fd_);
  waitpid(pid_, nullptr, 0);
}

}  // namespace quantd::bench
