#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quantd::client {

// An absl::Status whose message a person can act on, from what a gRPC call ended with. `details` is
// a serialized google.rpc.Status (grpc::Status::error_details()), from which come
//   BadRequest           "field layers[0].cols: expected a multiple of 32, got 100"
//   QuotaFailure         what is used up
//   PreconditionFailure  what is missing
//   RetryInfo            when to try again
// Each known detail is also kept as a payload under its type URL. Details that cannot be parsed are
// ignored.
absl::Status StatusFromWire(int code, absl::string_view message, absl::string_view details);

// ErrorInfo.reason, such as "DIMENSION_NOT_MULTIPLE"; empty where the server gave none.
std::string ErrorReason(const absl::Status& status);
// RetryInfo.retry_delay.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

}  // namespace quantd::client
