#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quantd::server {

// Says who a caller is. Thread-safe.
class Authenticator {
 public:
  virtual ~Authenticator() = default;
  // `authorization`: the value of the call's metadata of that name, empty if there is none. Returns
  // the tenant, or UNAUTHENTICATED; the message never repeats what was presented.
  virtual absl::StatusOr<std::string> Authenticate(absl::string_view authorization) const = 0;
};

// Everyone is tenant "default", whatever they present.
std::unique_ptr<Authenticator> AcceptEveryone();

// A tenant's bearer token, hashed: the token itself is never kept.
struct TokenHash {
  std::string tenant;
  std::string sha256_hex;  // 64 hexadecimal digits
};

// `Bearer TOKEN` (RFC 6750; the scheme in any case) where SHA-256(TOKEN) is one of `tokens`. Every
// hash is compared, in constant time, so timing tells nothing about them. A tenant may have several
// tokens. INVALID_ARGUMENT for a hash that is none, or one that two tenants share.
absl::StatusOr<std::unique_ptr<Authenticator>> AcceptTokens(const std::vector<TokenHash>& tokens);

}  // namespace quantd::server
