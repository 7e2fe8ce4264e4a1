#include <openssl/crypto.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "compute/tensor/checksum.h"
#include "server/auth/authenticator.h"

namespace quantd::server {
namespace {

constexpr absl::string_view kScheme = "bearer ";
constexpr size_t kSha256Bytes = sizeof(compute::Sha256Digest);

class Everyone final : public Authenticator {
 public:
  absl::StatusOr<std::string> Authenticate(absl::string_view) const override { return "default"; }
};

class Tokens final : public Authenticator {
 public:
  struct Entry {
    std::string sha256;  // 32 bytes
    std::string tenant;
  };
  explicit Tokens(std::vector<Entry> entries) : entries_(std::move(entries)) {}

  absl::StatusOr<std::string> Authenticate(absl::string_view authorization) const override {
    if (authorization.empty()) {
      return absl::UnauthenticatedError(
          "no credentials: expected the metadata 'authorization: Bearer TOKEN'");
    }
    if (!absl::StartsWithIgnoreCase(authorization, kScheme)) {
      return absl::UnauthenticatedError(
          "the metadata 'authorization' has another scheme: expected 'Bearer TOKEN'");
    }
    const absl::string_view token =
        absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
    const compute::Sha256Digest digest = compute::Sha256::Of(token);
    const Entry* match = nullptr;
    for (const Entry& entry : entries_) {  // to the end, match or not
      if (CRYPTO_memcmp(entry.sha256.data(), digest.data(), kSha256Bytes) == 0) match = &entry;
    }
    if (match == nullptr) return absl::UnauthenticatedError("the bearer token is not known");
    return match->tenant;
  }

 private:
  const std::vector<Entry> entries_;
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

absl::StatusOr<std::unique_ptr<Authenticator>> AcceptTokens(const std::vector<TokenHash>& tokens) {
  std::vector<Tokens::Entry> entries;
  for (const TokenHash& token : tokens) {
    auto sha256 = ParseHash(token.sha256_hex);
    if (!sha256.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tenant '", token.tenant, "': ", sha256.status().message()));
    }
    for (const Tokens::Entry& other : entries) {
      if (other.sha256 == *sha256 && other.tenant != token.tenant) {
        return absl::InvalidArgumentError(absl::StrCat("tenants '", other.tenant, "' and '",
                                                       token.tenant, "' have the same token"));
      }
    }
    entries.push_back({.sha256 = *std::move(sha256), .tenant = token.tenant});
  }
  return std::make_unique<Tokens>(std::move(entries));
}

}  // namespace quantd::server
