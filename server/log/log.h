#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

// Structured logs: one JSON object a line on standard error, {"time", "level", "event", fields...}.
// Thread-safe.
namespace quantd::server {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogField {
  absl::string_view name;
  std::variant<std::string, int64_t, double, bool> value;
};

// `level`: debug, info, warning or error. INVALID_ARGUMENT lists them.
absl::Status ConfigureLog(absl::string_view level);

// `event`: lower_snake, what happened; everything else goes into fields.
void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

}  // namespace quantd::server
