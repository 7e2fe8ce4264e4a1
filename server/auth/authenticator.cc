#include "server/auth/authenticator.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/tensor/checksum.h"

namespace quantd::server {
namespace {

constexpr absl::string_view kScheme = "bearer ";
constexpr size_t kSha256Bytes = sizeof(compute::Sha256Digest);

class Everyone final : public Authenticator {
 public:
  absl::StatusOr<Caller> Authenticate(const Presented&) const override {
    return Caller{"default", Roles::All(), "none"};
  }
};

class Known final : public Authenticator {
 public:
  // The tokens' hashes are binary here.
  explicit Known(Credentials credentials) : credentials_(std::move(credentials)) {}

  absl::StatusOr<Caller> Authenticate(const Presented& presented) const override {
    if (!presented.authorization.empty()) return FromToken(presented.authorization);
    for (const CertificateName& name : credentials_.certificates) {
      if (Matches(name, presented)) {
        return Caller{
            name.tenant, name.roles,
            name.uri.empty() ? absl::StrCat("dns:", name.dns) : absl::StrCat("uri:", name.uri)};
      }
    }
    if (!presented.uri_names.empty() || !presented.dns_names.empty()) {
      return absl::UnauthenticatedError("the client certificate belongs to no tenant");
    }
    return absl::UnauthenticatedError(
        "no credentials: expected the metadata 'authorization: Bearer TOKEN'");
  }

 private:
  static bool Matches(const CertificateName& name, const Presented& presented) {
    if (!name.uri.empty()) {
      return std::find(presented.uri_names.begin(), presented.uri_names.end(), name.uri) !=
             presented.uri_names.end();
    }
    return std::any_of(
        presented.dns_names.begin(), presented.dns_names.end(),
        [&](const std::string& dns) { return absl::EqualsIgnoreCase(dns, name.dns); });
  }

  absl::StatusOr<Caller> FromToken(absl::string_view authorization) const {
    if (!absl::StartsWithIgnoreCase(authorization, kScheme)) {
      return absl::UnauthenticatedError(
          "the metadata 'authorization' has another scheme: expected 'Bearer TOKEN'");
    }
    const absl::string_view token =
        absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
    const compute::Sha256Digest digest = compute::Sha256::Of(token);
    const TokenHash* match = nullptr;
    for (const TokenHash& known : credentials_.tokens) {  // to the end, match or not
      if (CRYPTO_memcmp(known.sha256_hex.data(), digest.data(), kSha256Bytes) == 0) match = &known;
    }
    if (match != nullptr) {
      return Caller{match->tenant, match->roles, absl::StrCat("token:", match->id)};
    }
    const bool is_jwt = std::count(token.begin(), token.end(), '.') == 2;
    if (credentials_.jwt == nullptr || !is_jwt) {
      return absl::UnauthenticatedError("the bearer token is not known");
    }
    auto identity = credentials_.jwt->Verify(token, absl::Now());
    if (!identity.ok()) return identity.status();
    return Caller{std::move(identity->tenant), identity->roles,
                  absl::StrCat("jwt:", identity->subject)};
  }

  const Credentials credentials_;
};

// absl::HexStringToBytes takes anything for a digit, so they are checked here.
absl::StatusOr<std::string> ParseHash(absl::string_view hex) {
  bool digits = hex.size() == 2 * kSha256Bytes;
  for (const char c : hex) digits = digits && absl::ascii_isxdigit(c);
  if (!digits) {
    return absl::InvalidArgumentError("token hash: expected 64 hexadecimal digits of a SHA-256");
  }
  return absl::HexStringToBytes(hex);
}

}  // namespace

std::unique_ptr<Authenticator> AcceptEveryone() { return std::make_unique<Everyone>(); }

absl::StatusOr<std::unique_ptr<Authenticator>> AcceptCredentials(Credentials credentials) {
  for (size_t i = 0; i < credentials.tokens.size(); ++i) {
    TokenHash& token = credentials.tokens[i];
    auto sha256 = ParseHash(token.sha256_hex);
    if (!sha256.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tenant '", token.tenant, "': ", sha256.status().message()));
    }
    token.sha256_hex = *std::move(sha256);
    for (size_t j = 0; j < i; ++j) {
      const TokenHash& other = credentials.tokens[j];
      if (other.sha256_hex == token.sha256_hex && other.tenant != token.tenant) {
        return absl::InvalidArgumentError(absl::StrCat("tenants '", other.tenant, "' and '",
                                                       token.tenant, "' have the same token"));
      }
    }
  }
  for (size_t i = 0; i < credentials.certificates.size(); ++i) {
    const CertificateName& name = credentials.certificates[i];
    for (size_t j = 0; j < i; ++j) {
      const CertificateName& other = credentials.certificates[j];
      if (other.uri == name.uri && absl::EqualsIgnoreCase(other.dns, name.dns) &&
          other.tenant != name.tenant) {
        return absl::InvalidArgumentError(absl::StrCat(
            "tenants '", other.tenant, "' and '", name.tenant, "' have the same certificate name"));
      }
    }
  }
  return std::make_unique<Known>(std::move(credentials));
}

ReplaceableAuthenticator::ReplaceableAuthenticator(std::shared_ptr<const Authenticator> first)
    : current_(std::move(first)) {}

void ReplaceableAuthenticator::Replace(std::shared_ptr<const Authenticator> next) {
  absl::MutexLock lock(&mutex_);
  current_ = std::move(next);
}

absl::StatusOr<Caller> ReplaceableAuthenticator::Authenticate(const Presented& presented) const {
  std::shared_ptr<const Authenticator> current;
  {
    absl::MutexLock lock(&mutex_);
    current = current_;
  }
  return current->Authenticate(presented);
}

}  // namespace quantd::server
