// Whatever a caller presents, it is one of the tokens or is refused without being repeated.
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "server/auth/authenticator.h"
#include "tests/fuzz/byte_feed.h"
#include "tests/fuzz/check.h"

namespace {

using namespace quantd::server;

constexpr char kHashOfSecret[] = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
constexpr char kHashOfOther[] = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

const Authenticator& Authenticators() {
  static const auto* const made = [] {
    Credentials credentials;
    for (const auto& [tenant, hash] : {std::pair{"acme", kHashOfSecret}, {"beta", kHashOfOther}}) {
      TokenHash token;
      token.tenant = tenant;
      token.sha256_hex = hash;
      credentials.tokens.push_back(token);
    }
    CertificateName name;
    name.tenant = "gamma";
    name.uri = "spiffe://example.org/gamma";
    credentials.certificates.push_back(name);
    return AcceptCredentials(std::move(credentials)).value().release();
  }();
  return *made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quantd::fuzz::ByteFeed feed(data, size);
  Presented presented;
  const bool has_certificate = (feed.Byte() & 1) != 0;
  if (has_certificate) {
    presented.uri_names.push_back(feed.Text());
    presented.dns_names.push_back(feed.Text());
  }
  const std::string authorization = feed.Rest();
  presented.authorization = authorization;

  const auto caller = Authenticators().Authenticate(presented);
  if (caller.ok()) {
    if (caller->tenant == "gamma") {
      FUZZ_CHECK(authorization.empty());
      FUZZ_CHECK(presented.uri_names.front() == "spiffe://example.org/gamma");
    } else {
      FUZZ_CHECK(absl::StrContains(authorization, caller->tenant == "acme" ? "secret" : "other"));
    }
    return 0;
  }
  quantd::fuzz::CheckRefusal(caller.status(), absl::StatusCode::kUnauthenticated);
  // Refusals say one of a few things, so nothing of what was presented.
  static auto* const said = new std::set<std::string>();
  said->emplace(caller.status().message());
  FUZZ_CHECK(said->size() <= 16);

  // The same bytes as a configured hash.
  Credentials configured;
  TokenHash token;
  token.tenant = "acme";
  token.sha256_hex = authorization;
  configured.tokens.push_back(token);
  const auto accepted = AcceptCredentials(std::move(configured));
  if (!accepted.ok()) {
    quantd::fuzz::CheckRefusal(accepted.status(), absl::StatusCode::kInvalidArgument);
  }
  return 0;
}
