#include "absl/strings/ascii.h"
#include "compute/tensor/checksum.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/auth/authenticator.h"

namespace quantd::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string HashOf(absl::string_view token) { return compute::ToHex(compute::Sha256::Of(token)); }

std::unique_ptr<Authenticator> TwoTenants() {
  auto tokens = AcceptTokens({{"acme", HashOf("acme-token")},
                              {"other", absl::AsciiStrToUpper(HashOf("other-token"))},
                              {"acme", HashOf("acme-second")}});
  EXPECT_TRUE(tokens.ok()) << tokens.status();
  return *std::move(tokens);
}

TEST(AuthenticatorTest, WithoutTenantsEveryoneIsDefault) {
  for (const char* authorization : {"", "Bearer x", "nonsense"}) {
    EXPECT_EQ(*AcceptEveryone()->Authenticate(authorization), "default");
  }
}

// echo -n abc | sha256sum, from FIPS 180-4: hashes made elsewhere are accepted.
TEST(AuthenticatorTest, AHashMadeElsewhereMatches) {
  const auto tokens =
      AcceptTokens({{"acme", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(*(*tokens)->Authenticate("Bearer abc"), "acme");
}

TEST(AuthenticatorTest, ATokenIsItsTenant) {
  const auto tokens = TwoTenants();
  EXPECT_EQ(*tokens->Authenticate("Bearer acme-token"), "acme");
  EXPECT_EQ(*tokens->Authenticate("bearer acme-second"), "acme");
  EXPECT_EQ(*tokens->Authenticate("BEARER  other-token "), "other");
}

TEST(AuthenticatorTest, EverythingElseIsRefusedAndNotRepeated) {
  const auto tokens = TwoTenants();
  for (const std::string& authorization :
       {std::string("Bearer acme-toke"), std::string("Bearer acme-token2"),
        std::string("Bearer Acme-token"), std::string("Bearer "), std::string("Bearer"),
        std::string("acme-token"), std::string("Basic acme-token"),
        "Bearer " + HashOf("acme-token"), std::string("Bearer acme-token\0", 18),
        std::string(100'000, 'x')}) {
    const auto tenant = tokens->Authenticate(authorization);
    EXPECT_EQ(tenant.status().code(), absl::StatusCode::kUnauthenticated);
    EXPECT_THAT(std::string(tenant.status().message()), Not(HasSubstr("acme")));
    EXPECT_LT(tenant.status().message().size(), 200u);
  }
  const auto without = tokens->Authenticate("");
  EXPECT_EQ(without.status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(without.status().message()), HasSubstr("authorization: Bearer TOKEN"));
}

TEST(AuthenticatorTest, NoTokensAcceptNobody) {
  const auto tokens = AcceptTokens({});
  ASSERT_TRUE(tokens.ok());
  EXPECT_EQ((*tokens)->Authenticate("Bearer ").status().code(), absl::StatusCode::kUnauthenticated);
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

}  // namespace
}  // namespace quantd::server
