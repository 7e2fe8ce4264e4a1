// JSON Web Tokens and key sets of any content: refused, or the tenant is one that tokens may name.
// Headers and claims come signed as well, because without a signature nobody reads them.
#include <cjose/cjose.h>

#include <cstdlib>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/auth/jwt_verifier.h"
#include "tests/fuzz/byte_feed.h"
#include "tests/fuzz/check.h"

namespace {

using namespace quantd::server;

JwtRules Rules() {
  JwtRules rules;
  rules.issuer = "https://issuer.example";
  rules.audience = "quantd";
  rules.algorithm = "ES256";
  rules.tenants = {"acme", "beta"};
  return rules;
}

// A key pair of this process, and the verifier that knows its public half.
struct Issuer {
  cjose_jwk_t* key = cjose_jwk_create_EC_random(CJOSE_JWK_EC_P_256, nullptr);
  std::unique_ptr<JwtVerifier> verifier;

  Issuer() {
    char* json = cjose_jwk_to_json(key, /*priv=*/false, nullptr);
    verifier = JwtVerifier::Create(Rules(), absl::StrCat(R"({"keys":[)", json, "]}")).value();
    std::free(json);
  }

  // The compact form of `claims`, signed; empty where the library refuses them.
  std::string Sign(const std::string& claims) const {
    cjose_header_t* header = cjose_header_new(nullptr);
    FUZZ_CHECK(cjose_header_set(header, CJOSE_HDR_ALG, "ES256", nullptr));
    cjose_jws_t* jws = cjose_jws_sign(key, header, reinterpret_cast<const uint8_t*>(claims.data()),
                                      claims.size(), nullptr);
    std::string token;
    const char* compact = nullptr;
    if (jws != nullptr && cjose_jws_export(jws, &compact, nullptr)) token = compact;
    if (jws != nullptr) cjose_jws_release(jws);
    cjose_header_release(header);
    return token;
  }
};

void Verify(const JwtVerifier& verifier, const std::string& token) {
  const auto identity = verifier.Verify(token, absl::FromUnixSeconds(1'700'000'000));
  if (identity.ok()) {
    FUZZ_CHECK(Rules().tenants.contains(identity->tenant));
    FUZZ_CHECK(identity->subject.size() <= 64);
    return;
  }
  quantd::fuzz::CheckRefusal(identity.status(), absl::StatusCode::kUnauthenticated);
  static auto* const said = new std::set<std::string>();
  said->emplace(identity.status().message());
  FUZZ_CHECK(said->size() <= 64);  // nothing of the token
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* const issuer = new Issuer();
  quantd::fuzz::ByteFeed feed(data, size);
  switch (feed.Choice(3)) {
    case 0:
      Verify(*issuer->verifier, issuer->Sign(feed.Rest()));
      break;
    case 1:
      Verify(*issuer->verifier, feed.Rest());
      break;
    default: {
      const auto verifier = JwtVerifier::Create(Rules(), feed.Rest());
      if (verifier.ok()) return 0;
      quantd::fuzz::CheckRefusal(verifier.status(), absl::StatusCode::kInvalidArgument);
    }
  }
  return 0;
}
