#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quantd::server {

// One line: who did what, and what came of it. Values are cut to bounded lengths.
struct AuditEntry {
  std::string tenant;      // empty for a caller who is not known
  std::string credential;  // "token:ID"; never a secret
  std::string peer;        // "ipv4:192.0.2.7:51234"
  std::string method;      // "quantd.v1.Jobs/CreateJob"
  std::string resource;    // "tenants/acme/jobs/x"; empty for a call that names none
  std::string outcome;     // gRPC status code, "OK"
  std::string reason;      // ErrorInfo's, of a failed call
};

// Appends a JSON object a line, {"time", "level", "event": "audit", ...}, fields as above.
// Thread-safe; never blocks on anything but the file. Lines of callers who are not known are
// bounded, so that guessing credentials cannot fill the disk: at most kMaxUnknownASecond a second,
// and the next line says in "suppressed" how many were left out.
class AuditLog {
 public:
  static constexpr int kMaxUnknownASecond = 100;

  // `path` empty: the lines go to the standard log, at level info. UNAVAILABLE if the file cannot
  // be opened.
  static absl::StatusOr<std::unique_ptr<AuditLog>> Open(const std::string& path);
  virtual ~AuditLog() = default;
  virtual void Write(const AuditEntry& entry) = 0;
  // Opens the file anew, after it was renamed to rotate it. With an error the old stays open.
  virtual absl::Status Reopen() = 0;
};

}  // namespace quantd::server
