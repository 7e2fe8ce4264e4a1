#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

// Errors as values with what a caller can act on. A status carries, as payloads, a reason
// (UPPER_SNAKE, stable) and what its code calls for: the field of a bad request, the subject of a
// quota or precondition, a delay to retry after. server/service turns these into google.rpc
// details.
namespace quantd::server {

absl::Status Error(absl::StatusCode code, absl::string_view reason, absl::string_view message);

// INVALID_ARGUMENT for one field of the request: "layers[0].cols", and what was expected and came.
absl::Status InvalidField(absl::string_view field, absl::string_view description,
                          absl::string_view reason = "INVALID_FIELD");
// The same from an error of a lower layer, whose message becomes the description.
absl::Status InvalidField(absl::string_view field, const absl::Status& cause);
// The same where the lower layer checked a whole message and names the field itself, in front of
// its message: "group_size: expected ..." within "recipe" is an error of "recipe.group_size".
absl::Status InvalidFieldWithin(absl::string_view parent, const absl::Status& cause);

// FAILED_PRECONDITION: `type` (UPPER_SNAKE, also the reason) must change for `subject` first.
absl::Status FailedPrecondition(absl::string_view type, absl::string_view subject,
                                absl::string_view description);
// RESOURCE_EXHAUSTED: a limit of `subject` is reached.
absl::Status QuotaExceeded(absl::string_view reason, absl::string_view subject,
                           absl::string_view description, absl::Duration retry_after);
// UNAVAILABLE: come back after `retry_after`.
absl::Status Unavailable(absl::string_view reason, absl::string_view message,
                         absl::Duration retry_after);

// The same code and payloads with "context: " in front of the message. OK stays OK.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

// Reads the payloads back.
struct ErrorDetails {
  std::string reason;  // from the code where nobody set one: "NOT_FOUND"
  std::optional<std::string> field;
  std::optional<std::string> precondition_type;
  std::optional<std::string> subject;
  std::optional<absl::Duration> retry_after;
};
ErrorDetails DetailsOf(const absl::Status& status);

}  // namespace quantd::server
