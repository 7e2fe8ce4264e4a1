#include "server/errors/error.h"

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace quantd::server {
namespace {

constexpr absl::string_view kReason = "quantd.dev/reason";
constexpr absl::string_view kField = "quantd.dev/field";
constexpr absl::string_view kPrecondition = "quantd.dev/precondition";
constexpr absl::string_view kSubject = "quantd.dev/subject";
constexpr absl::string_view kRetryAfterMs = "quantd.dev/retry_after_ms";

std::optional<std::string> Payload(const absl::Status& status, absl::string_view key) {
  const auto cord = status.GetPayload(key);
  if (!cord.has_value()) return std::nullopt;
  return std::string(*cord);
}

}  // namespace

absl::Status Error(absl::StatusCode code, absl::string_view reason, absl::string_view message) {
  absl::Status status(code, message);
  status.SetPayload(kReason, absl::Cord(reason));
  return status;
}

absl::Status InvalidField(absl::string_view field, absl::string_view description,
                          absl::string_view reason) {
  absl::Status status =
      Error(absl::StatusCode::kInvalidArgument, reason, absl::StrCat(field, ": ", description));
  status.SetPayload(kField, absl::Cord(field));
  return status;
}

absl::Status InvalidField(absl::string_view field, const absl::Status& cause) {
  return InvalidField(field, cause.message());
}

absl::Status InvalidFieldWithin(absl::string_view parent, const absl::Status& cause) {
  const absl::string_view message = cause.message();
  const size_t end = message.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_");
  if (end == 0 || end == message.npos || message.substr(end, 2) != ": ") {
    return InvalidField(parent, cause);
  }
  return InvalidField(absl::StrCat(parent, ".", message.substr(0, end)), message.substr(end + 2));
}

absl::Status FailedPrecondition(absl::string_view type, absl::string_view subject,
                                absl::string_view description) {
  absl::Status status =
      Error(absl::StatusCode::kFailedPrecondition, type, absl::StrCat(subject, ": ", description));
  status.SetPayload(kPrecondition, absl::Cord(type));
  status.SetPayload(kSubject, absl::Cord(subject));
  return status;
}

absl::Status QuotaExceeded(absl::string_view reason, absl::string_view subject,
                           absl::string_view description, absl::Duration retry_after) {
  absl::Status status =
      Error(absl::StatusCode::kResourceExhausted, reason, absl::StrCat(subject, ": ", description));
  status.SetPayload(kSubject, absl::Cord(subject));
  status.SetPayload(kRetryAfterMs,
                    absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(retry_after))));
  return status;
}

absl::Status Unavailable(absl::string_view reason, absl::string_view message,
                         absl::Duration retry_after) {
  absl::Status status = Error(absl::StatusCode::kUnavailable, reason, message);
  status.SetPayload(kRetryAfterMs,
                    absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(retry_after))));
  return status;
}

absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  absl::Status annotated(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload(
      [&](absl::string_view key, const absl::Cord& value) { annotated.SetPayload(key, value); });
  return annotated;
}

ErrorDetails DetailsOf(const absl::Status& status) {
  ErrorDetails details;
  details.reason =
      Payload(status, kReason).value_or(std::string(absl::StatusCodeToString(status.code())));
  details.field = Payload(status, kField);
  details.precondition_type = Payload(status, kPrecondition);
  details.subject = Payload(status, kSubject);
  int64_t milliseconds = 0;
  if (const auto retry = Payload(status, kRetryAfterMs);
      retry.has_value() && absl::SimpleAtoi(*retry, &milliseconds)) {
    details.retry_after = absl::Milliseconds(milliseconds);
  }
  return details;
}

}  // namespace quantd::server
