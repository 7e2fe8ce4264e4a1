#include "server/metrics/process.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <system_error>

namespace quantd::server {
namespace {

void Add(std::vector<prometheus::MetricFamily>& families, const char* name, const char* help,
         prometheus::MetricType type, std::optional<double> value) {
  if (!value) return;
  prometheus::ClientMetric metric;
  (type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) = *value;
  families.push_back({.name = name, .help = help, .type = type, .metric = {metric}});
}

// Field `index` (from 0) of /proc/self/statm, pages.
std::optional<double> MemoryBytes(int index) {
  std::ifstream file("/proc/self/statm");
  double pages = 0;
  for (int i = 0; i <= index; ++i) file >> pages;
  if (!file) return std::nullopt;
  return pages * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

std::optional<double> OpenFiles() {
  std::error_code error;
  double count = 0;
  for (std::filesystem::directory_iterator i("/proc/self/fd", error), end; !error && i != end;
       i.increment(error)) {
    ++count;
  }
  if (error) return std::nullopt;
  return count - 1;  // the one that counts
}

std::optional<double> MaxOpenFiles() {
  rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return std::nullopt;
  return static_cast<double>(limit.rlim_cur);
}

std::optional<double> CpuSeconds() {
  rusage usage;
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return std::nullopt;
  const auto seconds = [](const timeval& t) { return t.tv_sec + 1e-6 * t.tv_usec; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::optional<double> BootTime() {
  std::ifstream file("/proc/stat");
  std::string word;
  while (file >> word) {
    double seconds;
    if (word == "btime" && file >> seconds) return seconds;
  }
  return std::nullopt;
}

std::optional<double> StartTime() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  // Field 22 counts clock ticks since boot. The name in field 2 may hold blanks: start behind it.
  const size_t name_end = line.rfind(')');
  const std::optional<double> boot = BootTime();
  if (name_end == std::string::npos || !boot) return std::nullopt;
  size_t at = name_end + 2;
  for (int field = 3; field < 22 && at != 0; ++field) at = line.find(' ', at) + 1;
  if (at == 0) return std::nullopt;
  return *boot +
         std::strtod(line.c_str() + at, nullptr) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

}  // namespace

std::vector<prometheus::MetricFamily> ProcessMetrics() {
  using Type = prometheus::MetricType;
  std::vector<prometheus::MetricFamily> families;
  Add(families, "process_cpu_seconds_total", "User and system processor time of the process.",
      Type::Counter, CpuSeconds());
  Add(families, "process_max_fds", "Files that the process may have open at once.", Type::Gauge,
      MaxOpenFiles());
  Add(families, "process_open_fds", "Files that the process has open.", Type::Gauge, OpenFiles());
  Add(families, "process_resident_memory_bytes", "Resident memory of the process.", Type::Gauge,
      MemoryBytes(1));
  Add(families, "process_start_time_seconds", "When the process started, since 1970.", Type::Gauge,
      StartTime());
  Add(families, "process_virtual_memory_bytes", "Virtual memory of the process.", Type::Gauge,
      MemoryBytes(0));
  return families;
}

}  // namespace quantd::server
