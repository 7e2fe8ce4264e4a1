#include "server/auth/authenticator.h"

#include "absl/strings/ascii.h"
#include "compute/tensor/checksum.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quantd::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string HashOf(absl::string_view token) { return compute::ToHex(compute::Sha256::Of(token)); }

absl::StatusOr<std::unique_ptr<Authenticator>> AcceptTokens(std::vector<TokenHash> tokens) {
  return AcceptCredentials({.tokens = std::move(tokens), .certificates = {}, .jwt = nullptr});
}

// The tenant of a call with this metadata and no certificate.
absl::StatusOr<std::string> TenantOf(const Authenticator& authenticator,
                                     absl::string_view authorization) {
  const auto caller = authenticator.Authenticate(
      {.authorization = authorization, .uri_names = {}, .dns_names = {}});
  if (!caller.ok()) return caller.status();
  return caller->tenant;
}

std::unique_ptr<Authenticator> TwoTenants() {
  auto tokens =
      AcceptTokens({{"acme", HashOf("acme-token")},
                    {"other", absl::AsciiStrToUpper(HashOf("other-token"))},
                    {"acme", HashOf("acme-second"), "second", Roles().With(Role::kRead)}});
  EXPECT_TRUE(tokens.ok()) << tokens.status();
  return *std::move(tokens);
}

TEST(AuthenticatorTest, WithoutTenantsEveryoneIsDefault) {
  for (const char* authorization : {"", "Bearer x", "nonsense"}) {
    EXPECT_EQ(*TenantOf(*AcceptEveryone(), authorization), "default");
  }
}

// echo -n abc | sha256sum, from FIPS 180-4: hashes made elsewhere are accepted.
TEST(AuthenticatorTest, AHashMadeElsewhereMatches) {
  const auto tokens =
      AcceptTokens({{"acme", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(*TenantOf(**tokens, "Bearer abc"), "acme");
}

TEST(AuthenticatorTest, ATokenIsItsTenant) {
  const auto tokens = TwoTenants();
  EXPECT_EQ(*TenantOf(*tokens, "Bearer acme-token"), "acme");
  EXPECT_EQ(*TenantOf(*tokens, "bearer acme-second"), "acme");
  EXPECT_EQ(*TenantOf(*tokens, "BEARER  other-token "), "other");
}

TEST(AuthenticatorTest, EverythingElseIsRefusedAndNotRepeated) {
  const auto tokens = TwoTenants();
  for (const std::string& authorization :
       {std::string("Bearer acme-toke"), std::string("Bearer acme-token2"),
        std::string("Bearer Acme-token"), std::string("Bearer "), std::string("Bearer"),
        std::string("acme-token"), std::string("Basic acme-token"),
        "Bearer " + HashOf("acme-token"), std::string("Bearer acme-token\0", 18),
        std::string(100'000, 'x')}) {
    const auto tenant = TenantOf(*tokens, authorization);
    EXPECT_EQ(tenant.status().code(), absl::StatusCode::kUnauthenticated);
    EXPECT_THAT(std::string(tenant.status().message()), Not(HasSubstr("acme")));
    EXPECT_LT(tenant.status().message().size(), 200u);
  }
  const auto without = TenantOf(*tokens, "");
  EXPECT_EQ(without.status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(without.status().message()), HasSubstr("authorization: Bearer TOKEN"));
}

TEST(AuthenticatorTest, NoTokensAcceptNobody) {
  const auto tokens = AcceptTokens({});
  ASSERT_TRUE(tokens.ok());
  EXPECT_EQ(TenantOf(**tokens, "Bearer ").status().code(), absl::StatusCode::kUnauthenticated);
}

TEST(AuthenticatorTest, HashesAreChecked) {
  for (const std::string& hash : {std::string(), std::string(63, 'a'), std::string(65, 'a'),
                                  std::string(64, 'g'), std::string("acme-token")}) {
    const auto tokens = AcceptTokens({{"acme", hash}});
    EXPECT_EQ(tokens.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(tokens.status().message()), HasSubstr("acme"));
  }
  EXPECT_EQ(AcceptTokens({{"a", HashOf("t")}, {"b", HashOf("t")}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(AuthenticatorTest, ACredentialHasItsRolesAndItsName) {
  const auto tokens = TwoTenants();
  const auto first = tokens->Authenticate(
      {.authorization = "Bearer acme-token", .uri_names = {}, .dns_names = {}});
  EXPECT_EQ(first->credential, "token:token");
  EXPECT_EQ(first->roles, Roles::SubmitAndRead());
  const auto second = tokens->Authenticate(
      {.authorization = "Bearer acme-second", .uri_names = {}, .dns_names = {}});
  EXPECT_EQ(second->credential, "token:second");
  EXPECT_EQ(second->roles.ToString(), "read");
}

TEST(AuthenticatorTest, ACertificateIsItsTenantByWholeNames) {
  const auto made = AcceptCredentials(
      {.tokens = {{"acme", HashOf("acme-token")}},
       .certificates = {{"acme", "spiffe://example.org/acme", ""}, {"other", "", "a.example.org"}},
       .jwt = nullptr});
  ASSERT_TRUE(made.ok()) << made.status();
  const auto tenant = [&](std::vector<std::string> uris, std::vector<std::string> names,
                          absl::string_view authorization = "") {
    const auto caller = (*made)->Authenticate({.authorization = authorization,
                                               .uri_names = std::move(uris),
                                               .dns_names = std::move(names)});
    return caller.ok() ? caller->tenant
                       : std::string(absl::StatusCodeToString(caller.status().code()));
  };
  EXPECT_EQ(tenant({"spiffe://example.org/acme"}, {}), "acme");
  EXPECT_EQ(tenant({"x", "spiffe://example.org/acme"}, {"y"}), "acme");
  EXPECT_EQ(tenant({}, {"A.example.ORG"}), "other");
  // A name of the other kind, a part of a name and a longer one are others.
  EXPECT_EQ(tenant({"a.example.org"}, {"spiffe://example.org/acme"}), "UNAUTHENTICATED");
  EXPECT_EQ(tenant({"spiffe://example.org/acme/x", "spiffe://example.org"}, {}), "UNAUTHENTICATED");
  EXPECT_EQ(tenant({}, {"b.a.example.org", "*.example.org"}), "UNAUTHENTICATED");
  // What the call presents itself decides, for good and ill.
  EXPECT_EQ(tenant({}, {"a.example.org"}, "Bearer acme-token"), "acme");
  EXPECT_EQ(tenant({}, {"a.example.org"}, "Bearer wrong"), "UNAUTHENTICATED");
}

TEST(AuthenticatorTest, OneCertificateNameIsOneTenant) {
  EXPECT_EQ(AcceptCredentials({.tokens = {},
                               .certificates = {{"a", "", "x.example"}, {"b", "", "X.example"}},
                               .jwt = nullptr})
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(AuthenticatorTest, AReplacedOneIsAskedNoMore) {
  ReplaceableAuthenticator authenticator(TwoTenants());
  EXPECT_TRUE(TenantOf(authenticator, "Bearer acme-token").ok());
  authenticator.Replace(*AcceptTokens({{"acme", HashOf("new")}}));
  EXPECT_FALSE(TenantOf(authenticator, "Bearer acme-token").ok());
  EXPECT_EQ(*TenantOf(authenticator, "Bearer new"), "acme");
}

}  // namespace
}  // namespace quantd::server
