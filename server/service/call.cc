#include "server/service/call.h"

#include "absl/strings/str_cat.h"
#include "server/errors/error.h"
#include "server/log/log.h"

namespace quantd::server {
namespace {

std::string AuthorizationOf(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find("authorization");
  if (found == metadata.end()) return "";
  return std::string(found->second.data(), found->second.size());
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
      tenant_(environment.authenticator.Authenticate(AuthorizationOf(*context))) {}

grpc::Status Call::Finish(const absl::Status& status) {
  const double seconds = absl::ToDoubleSeconds(absl::Now() - started_);
  environment_.metrics.RpcFinished(method_, absl::StatusCodeToString(status.code()), seconds);
  if (!status.ok() && !absl::IsCancelled(status)) {
    environment_.metrics.Rejected(DetailsOf(status).reason);
  }
  Log(IsServerFault(status.code()) ? LogLevel::kError : LogLevel::kDebug, "rpc",
      {{"method", method_},
       {"tenant", tenant_.ok() ? *tenant_ : ""},
       {"code", absl::StatusCodeToString(status.code())},
       {"seconds", seconds},
       {"message", std::string(status.message())}});
  return ToGrpc(status);
}

}  // namespace quantd::server
