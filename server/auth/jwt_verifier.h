#pragma once

#include <memory>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/auth/roles.h"

namespace quantd::server {

struct JwtRules {
  std::string issuer;
  std::string audience;
  std::string algorithm = "RS256";  // RS, PS or ES with 256, 384 or 512
  std::string tenant_claim = "tenant";
  std::string role_claim = "roles";
  absl::Duration clock_skew = absl::Seconds(30);
  std::set<std::string> tenants;  // that a token may name
};

struct JwtIdentity {
  std::string tenant;
  Roles roles;
  std::string subject;  // claim `sub`, at most 64 bytes; empty if there is none
};

// Verifies JSON Web Tokens (RFC 7519) in compact form. The algorithm is pinned: what the token's
// header says must equal it, before a key is looked at, so neither `none` nor an HMAC with the
// public key as its secret gets in. Thread-safe.
class JwtVerifier {
 public:
  // `jwks`: a JWK set (RFC 7517). Keys for another use or algorithm are left out. INVALID_ARGUMENT
  // if none remains, or for a private or symmetric key, an RSA key below 2048 bits or another curve
  // than the algorithm's.
  static absl::StatusOr<std::unique_ptr<JwtVerifier>> Create(JwtRules rules,
                                                             absl::string_view jwks);
  virtual ~JwtVerifier() = default;
  // UNAUTHENTICATED says which check failed and repeats nothing of the token. `exp` has to be
  // there; `nbf` counts if it is.
  virtual absl::StatusOr<JwtIdentity> Verify(absl::string_view token, absl::Time now) const = 0;
};

}  // namespace quantd::server
