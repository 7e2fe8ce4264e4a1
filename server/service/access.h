#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/auth/authenticator.h"
#include "server/config/config.h"
#include "server/service/tenant_calls.h"
#include "server/service/tls_credentials.h"

namespace quantd::server {

// Who may connect and call: what of the configuration is replaced while the server runs (tenants,
// their limits of calls, tokens, roles, keys, certificates). Thread-safe.
class Access {
 public:
  // Reads the files that the configuration names. INVALID_ARGUMENT or NOT_FOUND says which is
  // wrong.
  static absl::StatusOr<std::unique_ptr<Access>> Create(const ServerConfig& config);

  // All of it or, with an error, nothing: calls and connections made before go on, later ones see
  // the new. FAILED_PRECONDITION for a change that only a restart can make: TLS on or off, client
  // certificates asked for or not.
  absl::Status Reload(const ServerConfig& config);

  const Authenticator& authenticator() const { return authenticator_; }
  TenantCalls& calls() { return calls_; }
  // As configured now; "default" alone where none are.
  std::vector<TenantConfig> tenants() const;
  // For grpc::ServerBuilder; the server must be gone before this is.
  std::shared_ptr<grpc::ServerCredentials> grpc_credentials() const;

 private:
  struct Parts;
  static absl::StatusOr<Parts> Load(const ServerConfig& config);
  void SetTenants(const ServerConfig& config);
  Access(const ServerConfig& config, Parts parts);

  const bool requires_client_certificate_;
  const bool asks_for_client_certificate_;
  ReplaceableAuthenticator authenticator_;
  TenantCalls calls_;
  mutable absl::Mutex mutex_;
  std::vector<TenantConfig> tenants_ ABSL_GUARDED_BY(mutex_);
  const std::shared_ptr<TlsCredentials> tls_;  // null: plain connections
};

}  // namespace quantd::server
