#include "server/service/call.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_context.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "server/errors/error.h"
#include "server/log/log.h"
#include "server/service/permissions.h"

namespace quantd::server {
namespace {

std::string AuthorizationOf(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find("authorization");
  if (found == metadata.end()) return "";
  return std::string(found->second.data(), found->second.size());
}

// What the client certificate calls its owner; nothing on a plain connection.
std::vector<std::string> NamesOf(const grpc::CallbackServerContext& context, const char* property) {
  std::vector<std::string> names;
  const auto auth = context.auth_context();
  if (auth == nullptr) return names;
  for (const grpc::string_ref& name : auth->FindPropertyValues(property)) {
    names.emplace_back(name.data(), name.size());
  }
  return names;
}

absl::StatusOr<Caller> CallerOf(const Authenticator& authenticator,
                                const grpc::CallbackServerContext& context) {
  const std::string authorization = AuthorizationOf(context);
  return authenticator.Authenticate({.authorization = authorization,
                                     .uri_names = NamesOf(context, GRPC_PEER_URI_PROPERTY_NAME),
                                     .dns_names = NamesOf(context, GRPC_PEER_DNS_PROPERTY_NAME)});
}

// An admitted call is one of the tenant's open ones until it has finished.
absl::StatusOr<std::string> Admit(TenantCalls& calls, absl::string_view method,
                                  const absl::StatusOr<Caller>& caller) {
  if (!caller.ok()) return caller.status();
  if (absl::Status s = CheckRole(method, *caller); !s.ok()) return s;
  if (absl::Status s = calls.TakeMessage(caller->tenant, absl::Now()); !s.ok()) return s;
  if (absl::Status s = calls.Open(caller->tenant); !s.ok()) return s;
  return caller->tenant;
}

bool IsServerFault(absl::StatusCode code) {
  return code == absl::StatusCode::kInternal || code == absl::StatusCode::kDataLoss ||
         code == absl::StatusCode::kUnknown;
}

}  // namespace

Call::Call(const CallEnvironment& environment, grpc::CallbackServerContext* context,
           absl::string_view method)
    : environment_(environment),
      method_(method),
      peer_(context->peer()),
      caller_(CallerOf(environment.authenticator, *context)),
      tenant_(Admit(environment.calls, method, caller_)) {}

grpc::Status Call::Finish(const absl::Status& status) {
  const double seconds = absl::ToDoubleSeconds(absl::Now() - started_);
  environment_.metrics.RpcFinished(method_, absl::StatusCodeToString(status.code()), seconds);
  if (!status.ok() && !absl::IsCancelled(status)) {
    environment_.metrics.Rejected(caller_.ok() ? caller_->tenant : "", DetailsOf(status).reason);
  }
  Log(IsServerFault(status.code()) ? LogLevel::kError : LogLevel::kDebug, "rpc",
      {{"method", method_},
       {"tenant", tenant_.ok() ? *tenant_ : ""},
       {"code", absl::StatusCodeToString(status.code())},
       {"seconds", seconds},
       {"message", std::string(status.message())}});
  Audit(status);
  if (tenant_.ok()) environment_.calls.Close(*tenant_);
  return ToGrpc(status);
}

absl::Status Call::TakeMessage() const {
  return environment_.calls.TakeMessage(*tenant_, absl::Now());
}

absl::Status IdleStatus(const IdleStreams& idle) {
  return Unavailable(
      "STREAM_IDLE",
      absl::StrCat("the client has sent nothing for ", absl::FormatDuration(idle.timeout()),
                   " (limits.idle_stream_seconds); what was acknowledged is kept"),
      absl::Milliseconds(100));
}

void Call::Audit(const absl::Status& status) const {
  const Permission* permission = FindPermission(method_);
  const bool changes = permission != nullptr && permission->changes;
  if (tenant_.ok() && !changes) return;
  environment_.audit.Write({.tenant = caller_.ok() ? caller_->tenant : "",
                            .credential = caller_.ok() ? caller_->credential : "",
                            .peer = peer_,
                            .method = method_,
                            .resource = resource_,
                            .outcome = absl::StatusCodeToString(status.code()),
                            .reason = status.ok() ? "" : DetailsOf(status).reason});
}

}  // namespace quantd::server
