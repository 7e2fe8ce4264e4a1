#include "server/service/access.h"

#include <grpcpp/grpcpp.h>

#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace quantd::server {

struct Access::Parts {
  std::shared_ptr<const Authenticator> authenticator;
  std::optional<TlsMaterial> tls;
};

namespace {

Roles RolesFrom(const RolesConfig& config) {
  Roles roles;
  if (config.submit) roles = roles.With(Role::kSubmit);
  if (config.read) roles = roles.With(Role::kRead);
  if (config.admin) roles = roles.With(Role::kAdmin);
  return roles;
}

absl::StatusOr<std::unique_ptr<JwtVerifier>> MakeJwtVerifier(const ServerConfig& config) {
  std::ifstream file(config.jwt->keys_file, std::ios::binary);
  std::ostringstream keys;
  if (file) keys << file.rdbuf();
  if (!file) {
    return absl::NotFoundError(absl::StrCat("jwt.keys_file: cannot read ", config.jwt->keys_file));
  }
  JwtRules rules{.issuer = config.jwt->issuer,
                 .audience = config.jwt->audience,
                 .algorithm = config.jwt->algorithm,
                 .tenant_claim = config.jwt->tenant_claim,
                 .role_claim = config.jwt->role_claim,
                 .clock_skew = absl::Seconds(config.jwt->clock_skew_seconds),
                 .tenants = {}};
  for (const TenantConfig& tenant : config.tenants) rules.tenants.insert(tenant.name);
  return JwtVerifier::Create(std::move(rules), keys.str());
}

absl::StatusOr<std::unique_ptr<Authenticator>> MakeAuthenticator(const ServerConfig& config) {
  if (config.tenants.empty()) return AcceptEveryone();
  Credentials credentials;
  for (const TenantConfig& tenant : config.tenants) {
    for (const TokenConfig& token : tenant.tokens) {
      credentials.tokens.push_back({tenant.name, token.sha256, token.id, RolesFrom(token.roles)});
    }
    for (const CertificateConfig& certificate : tenant.certificates) {
      credentials.certificates.push_back(
          {tenant.name, certificate.uri, certificate.dns, RolesFrom(certificate.roles)});
    }
  }
  if (config.jwt.has_value()) {
    auto jwt = MakeJwtVerifier(config);
    if (!jwt.ok()) return jwt.status();
    credentials.jwt = *std::move(jwt);
  }
  return AcceptCredentials(std::move(credentials));
}

}  // namespace

absl::StatusOr<Access::Parts> Access::Load(const ServerConfig& config) {
  Parts parts;
  auto authenticator = MakeAuthenticator(config);
  if (!authenticator.ok()) return authenticator.status();
  parts.authenticator = *std::move(authenticator);
  if (!config.tls_certificate_file.empty()) {
    auto tls = LoadTlsMaterial(config.tls_certificate_file, config.tls_private_key_file,
                               config.tls_client_ca_file);
    if (!tls.ok()) return tls.status();
    parts.tls = *std::move(tls);
  }
  return parts;
}

Access::Access(const ServerConfig& config, Parts parts)
    : requires_client_certificate_(config.tls_require_client_certificate),
      asks_for_client_certificate_(!config.tls_client_ca_file.empty()),
      authenticator_(std::move(parts.authenticator)),
      tls_(parts.tls.has_value() ? TlsCredentials::Create(*std::move(parts.tls),
                                                          config.tls_require_client_certificate)
                                 : nullptr) {
  SetTenants(config);
}

void Access::SetTenants(const ServerConfig& config) {
  const TenantCalls::Limits common{.calls = config.limits.max_calls_per_tenant,
                                   .messages_per_second = config.limits.max_messages_per_second};
  std::map<std::string, TenantCalls::Limits> own;
  for (const TenantConfig& tenant : config.tenants) {
    TenantCalls::Limits limits = common;
    if (tenant.max_calls > 0) limits.calls = tenant.max_calls;
    if (tenant.max_messages_per_second > 0) {
      limits.messages_per_second = tenant.max_messages_per_second;
    }
    own[tenant.name] = limits;
  }
  calls_.SetLimits(common, std::move(own));
  absl::MutexLock lock(&mutex_);
  tenants_ = config.tenants;
  if (tenants_.empty()) tenants_.push_back({.name = "default"});
}

std::vector<TenantConfig> Access::tenants() const {
  absl::MutexLock lock(&mutex_);
  return tenants_;
}

absl::StatusOr<std::unique_ptr<Access>> Access::Create(const ServerConfig& config) {
  auto parts = Load(config);
  if (!parts.ok()) return parts.status();
  return std::unique_ptr<Access>(new Access(config, *std::move(parts)));
}

absl::Status Access::Reload(const ServerConfig& config) {
  if ((tls_ != nullptr) == config.tls_certificate_file.empty()) {
    return absl::FailedPreconditionError("tls_certificate_file: TLS on or off needs a restart");
  }
  if (asks_for_client_certificate_ == config.tls_client_ca_file.empty() ||
      requires_client_certificate_ != config.tls_require_client_certificate) {
    return absl::FailedPreconditionError(
        "tls_client_ca_file: whether client certificates are asked for or required needs a "
        "restart");
  }
  auto parts = Load(config);
  if (!parts.ok()) return parts.status();
  if (tls_ != nullptr) tls_->Replace(*std::move(parts->tls));
  authenticator_.Replace(std::move(parts->authenticator));
  SetTenants(config);
  return absl::OkStatus();
}

std::shared_ptr<grpc::ServerCredentials> Access::grpc_credentials() const {
  return tls_ == nullptr ? grpc::InsecureServerCredentials() : tls_->grpc_credentials();
}

}  // namespace quantd::server
