#include "server/service/grpc_status.h"

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

// Unset for a request that fails however often it is repeated (a delay of zero).
std::optional<absl::Duration> RetryAfter(const absl::Status& status, const ErrorDetails& details) {
  // Quotas and full disks of lower layers: somebody may delete something.
  constexpr absl::Duration kUntilThereIsRoom = absl::Seconds(10);
  if (details.retry_after == absl::ZeroDuration()) return std::nullopt;
  if (!details.retry_after.has_value() && absl::IsResourceExhausted(status)) {
    return kUntilThereIsRoom;
  }
  return details.retry_after;
}

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status rpc;
  rpc.set_code(static_cast<int>(status.code()));
  rpc.set_message(std::string(status.message()));
  if (status.ok()) return rpc;
  const ErrorDetails details = DetailsOf(status);

  google::rpc::ErrorInfo info;
  info.set_reason(details.reason);
  info.set_domain("quantd.dev");
  if (details.field.has_value()) (*info.mutable_metadata())["field"] = *details.field;
  if (details.subject.has_value()) (*info.mutable_metadata())["subject"] = *details.subject;
  rpc.add_details()->PackFrom(info);

  if (details.field.has_value()) {
    google::rpc::BadRequest bad;
    auto* violation = bad.add_field_violations();
    violation->set_field(*details.field);
    absl::string_view description = status.message();
    absl::ConsumePrefix(&description, *details.field);
    absl::ConsumePrefix(&description, ": ");
    violation->set_description(std::string(description));
    rpc.add_details()->PackFrom(bad);
  }
  if (status.code() == absl::StatusCode::kFailedPrecondition) {
    google::rpc::PreconditionFailure failure;
    auto* violation = failure.add_violations();
    violation->set_type(details.precondition_type.value_or(details.reason));
    violation->set_subject(details.subject.value_or(""));
    violation->set_description(std::string(status.message()));
    rpc.add_details()->PackFrom(failure);
  }
  if (status.code() == absl::StatusCode::kResourceExhausted) {
    google::rpc::QuotaFailure failure;
    auto* violation = failure.add_violations();
    violation->set_subject(details.subject.value_or("server"));
    violation->set_description(std::string(status.message()));
    rpc.add_details()->PackFrom(failure);
  }
  const std::optional<absl::Duration> retry_after = RetryAfter(status, details);
  if (retry_after.has_value()) {
    google::rpc::RetryInfo retry;
    const int64_t milliseconds = absl::ToInt64Milliseconds(*retry_after);
    retry.mutable_retry_delay()->set_seconds(milliseconds / 1000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int>(milliseconds % 1000) * 1000000);
    rpc.add_details()->PackFrom(retry);
  }
  return rpc;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      ToRpcStatus(status).SerializeAsString());
}

std::string ToRpcStatusBytes(const absl::Status& status) {
  return ToRpcStatus(status).SerializeAsString();
}

}  // namespace quantd::server
