#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/auth/jwt_verifier.h"
#include "server/auth/roles.h"

namespace quantd::server {

// Who calls, and what the credential allows.
struct Caller {
  std::string tenant;
  Roles roles;
  // For the audit log: "token:ID", "uri:SAN", "dns:SAN", "jwt:SUBJECT" or "none". No secret.
  std::string credential;
};

// What a call brought along.
struct Presented {
  absl::string_view authorization;     // the call's metadata of that name, empty if there is none
  std::vector<std::string> uri_names;  // of the client certificate, which TLS has verified
  std::vector<std::string> dns_names;
};

// Says who a caller is. Thread-safe.
class Authenticator {
 public:
  virtual ~Authenticator() = default;
  // UNAUTHENTICATED for what is not known; the message never repeats what was presented.
  virtual absl::StatusOr<Caller> Authenticate(const Presented& presented) const = 0;
};

// Everyone is tenant "default" with every role, whatever they present.
std::unique_ptr<Authenticator> AcceptEveryone();

// A tenant's bearer token, hashed: the token itself is never kept.
struct TokenHash {
  std::string tenant;
  std::string sha256_hex;  // 64 hexadecimal digits
  std::string id = "token";
  Roles roles = Roles::SubmitAndRead();
};

// A subject alternative name of client certificates: one of the two, compared as a whole.
struct CertificateName {
  std::string tenant;
  std::string uri;
  std::string dns;  // in any case
  Roles roles = Roles::SubmitAndRead();
};

struct Credentials {
  std::vector<TokenHash> tokens;
  std::vector<CertificateName> certificates;
  std::shared_ptr<const JwtVerifier> jwt;  // null: none are accepted
};

// `Bearer TOKEN` (RFC 6750; the scheme in any case) where SHA-256(TOKEN) is one of the tokens, or
// TOKEN is a JWT that verifies; without the metadata, a client certificate with one of the names.
// What is presented in the metadata decides: a wrong token is refused whatever the certificate
// says. Every hash is compared, in constant time, so timing tells nothing about them.
// INVALID_ARGUMENT for a hash that is none, or a hash or name that two tenants share.
absl::StatusOr<std::unique_ptr<Authenticator>> AcceptCredentials(Credentials credentials);

// Passes on to another authenticator, which may be replaced while calls come in.
class ReplaceableAuthenticator final : public Authenticator {
 public:
  explicit ReplaceableAuthenticator(std::shared_ptr<const Authenticator> first);
  void Replace(std::shared_ptr<const Authenticator> next);
  absl::StatusOr<Caller> Authenticate(const Presented& presented) const override;

 private:
  mutable absl::Mutex mutex_;
  std::shared_ptr<const Authenticator> current_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace quantd::server
