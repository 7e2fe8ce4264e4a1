#include "server/auth/jwt_verifier.h"

#include <cjose/cjose.h>
#include <cjose/jwk.h>
#include <cjose/jws.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"

namespace quantd::server {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxTokenBytes = 8192;
constexpr size_t kMaxSubjectBytes = 64;
constexpr size_t kMinRsaBits = 2048;

struct ReleaseKey {
  void operator()(cjose_jwk_t* key) const { cjose_jwk_release(key); }
};
struct ReleaseJws {
  void operator()(cjose_jws_t* jws) const { cjose_jws_release(jws); }
};

struct Key {
  std::string id;  // empty: for every token
  std::unique_ptr<cjose_jwk_t, ReleaseKey> jwk;
};

template <typename... Parts>
absl::Status BadKeys(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("jwt.keys_file: ", parts...));
}
absl::Status Refuse(absl::string_view why) {
  return absl::UnauthenticatedError(absl::StrCat("the JWT is refused: ", why));
}

// As RFC 7515 has it: no padding. On some text that is none, libcjose ends the process by an
// assertion.
bool IsBase64Url(absl::string_view text) {
  return text.size() % 4 != 1 && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_';
         });
}

std::string StringAt(const Json& object, const std::string& name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// What the algorithm asks of its key, from RFC 7518.
absl::Status CheckStrength(absl::string_view algorithm, const cjose_jwk_t* jwk) {
  cjose_err error{};
  const cjose_jwk_kty_t type = cjose_jwk_get_kty(jwk, &error);
  const size_t bits = cjose_jwk_get_keysize(jwk, &error);
  if (absl::StartsWith(algorithm, "ES")) {
    const size_t expected =
        algorithm == "ES256" ? 256 : (algorithm == "ES384" ? 384 : 521);  // P-521, not 512
    if (type != CJOSE_JWK_KTY_EC || bits != expected) {
      return BadKeys(algorithm, " needs an EC key of ", expected, " bits");
    }
    return absl::OkStatus();
  }
  if (type != CJOSE_JWK_KTY_RSA || bits < kMinRsaBits) {
    return BadKeys(algorithm, " needs an RSA key of at least ", kMinRsaBits, " bits");
  }
  return absl::OkStatus();
}

// True for a key that the issuer publishes for something else.
bool IsForOthers(const Json& key, const std::string& algorithm) {
  const std::string use = StringAt(key, "use");
  const std::string alg = StringAt(key, "alg");
  return (!use.empty() && use != "sig") || (!alg.empty() && alg != algorithm);
}

absl::StatusOr<std::vector<Key>> ParseKeys(absl::string_view jwks, const std::string& algorithm) {
  const Json set = Json::parse(jwks, nullptr, /*allow_exceptions=*/false);
  const auto keys = set.is_object() ? set.find("keys") : set.end();
  if (!set.is_object() || keys == set.end() || !keys->is_array()) {
    return BadKeys("expected a JWK set, {\"keys\": [...]}");
  }
  std::vector<Key> parsed;
  for (const Json& key : *keys) {
    if (!key.is_object()) return BadKeys("expected objects in \"keys\"");
    // Whoever has such a key can sign: it does not belong on a server that only verifies.
    if (key.contains("d") || key.contains("k") || StringAt(key, "kty") == "oct") {
      return BadKeys("expected public keys, got a private or symmetric one");
    }
    if (IsForOthers(key, algorithm)) continue;
    for (const char* name : {"n", "e", "x", "y", "p", "q", "dp", "dq", "qi"}) {
      if (!IsBase64Url(StringAt(key, name))) return BadKeys("\"", name, "\" is no base64url");
    }
    const std::string text = key.dump(-1, ' ', false, Json::error_handler_t::replace);
    cjose_err error{};
    Key one{StringAt(key, "kid"), nullptr};
    one.jwk.reset(cjose_jwk_import(text.data(), text.size(), &error));
    if (one.jwk == nullptr) return BadKeys("key ", parsed.size(), " is no RSA or EC key");
    if (absl::Status s = CheckStrength(algorithm, one.jwk.get()); !s.ok()) return s;
    parsed.push_back(std::move(one));
  }
  if (parsed.empty()) return BadKeys("no key for ", algorithm);
  return parsed;
}

Roles RolesFrom(const Json& claim) {
  Roles roles;
  if (claim.is_string()) {
    const std::string text = claim.get<std::string>();
    for (const absl::string_view name : absl::StrSplit(text, ' ')) roles = roles.With(name);
  } else if (claim.is_array()) {
    for (const Json& name : claim) {
      if (name.is_string()) roles = roles.With(name.get<std::string>());
    }
  }
  return roles;
}

class Verifier final : public JwtVerifier {
 public:
  Verifier(JwtRules rules, std::vector<Key> keys)
      : rules_(std::move(rules)), keys_(std::move(keys)) {}

  absl::StatusOr<JwtIdentity> Verify(absl::string_view token, absl::Time now) const override {
    const auto payload = Authentic(token);
    if (!payload.ok()) return payload.status();
    const Json claims = Json::parse(*payload, nullptr, /*allow_exceptions=*/false);
    if (!claims.is_object()) return Refuse("its payload is no JSON object");
    if (absl::Status s = CheckTimes(claims, now); !s.ok()) return s;
    if (StringAt(claims, "iss") != rules_.issuer) return Refuse("it has another issuer");
    if (!IsForUs(claims)) return Refuse("it is for another audience");
    JwtIdentity identity;
    identity.tenant = StringAt(claims, rules_.tenant_claim);
    if (!rules_.tenants.contains(identity.tenant))
      return Refuse("it names no tenant of this server");
    const auto roles = claims.find(rules_.role_claim);
    identity.roles = roles == claims.end() ? Roles::SubmitAndRead() : RolesFrom(*roles);
    identity.subject = StringAt(claims, "sub").substr(0, kMaxSubjectBytes);
    return identity;
  }

 private:
  // The payload of a token whose signature one of the keys verifies.
  absl::StatusOr<std::string> Authentic(absl::string_view token) const {
    if (token.size() > kMaxTokenBytes) return Refuse("it is too long");
    const std::vector<absl::string_view> parts = absl::StrSplit(token, '.');
    if (parts.size() != 3 || !std::all_of(parts.begin(), parts.end(), IsBase64Url)) {
      return Refuse("it is malformed");
    }
    cjose_err error{};
    const std::unique_ptr<cjose_jws_t, ReleaseJws> jws(
        cjose_jws_import(token.data(), token.size(), &error));
    if (jws == nullptr) return Refuse("it is malformed");
    cjose_header_t* header = cjose_jws_get_protected(jws.get());
    const auto field = [&](const char* name) {
      cjose_err absent{};
      const char* value = cjose_header_get(header, name, &absent);
      return absl::string_view(value == nullptr ? "" : value);
    };
    if (field("alg") != rules_.algorithm) return Refuse("it is signed with another algorithm");
    // Extensions that must be understood (RFC 7515, 4.1.11): none is.
    cjose_err absent{};
    char* critical = cjose_header_get_raw(header, "crit", &absent);
    if (critical != nullptr) {
      cjose_get_dealloc()(critical);
      return Refuse("it needs an extension");
    }
    const absl::string_view id = field("kid");
    const bool verified = std::any_of(keys_.begin(), keys_.end(), [&](const Key& key) {
      if (!id.empty() && !key.id.empty() && id != key.id) return false;
      cjose_err unverified{};
      return cjose_jws_verify(jws.get(), key.jwk.get(), &unverified);
    });
    if (!verified) return Refuse("no key verifies its signature");
    uint8_t* text = nullptr;
    size_t size = 0;
    if (!cjose_jws_get_plaintext(jws.get(), &text, &size, &error)) return Refuse("it is empty");
    return std::string(reinterpret_cast<const char*>(text), size);
  }

  absl::Status CheckTimes(const Json& claims, absl::Time now) const {
    const double seconds = absl::ToDoubleSeconds(now - absl::UnixEpoch());
    const double skew = absl::ToDoubleSeconds(rules_.clock_skew);
    const auto expires = claims.find("exp");
    if (expires == claims.end() || !expires->is_number()) return Refuse("it has no time of expiry");
    // Written so that a NaN or an infinite time fails.
    if (!(seconds < expires->get<double>() + skew) || !std::isfinite(expires->get<double>())) {
      return Refuse("it has expired");
    }
    const auto begins = claims.find("nbf");
    if (begins == claims.end()) return absl::OkStatus();
    if (!begins->is_number() || !(begins->get<double>() - skew <= seconds)) {
      return Refuse("it is not valid yet");
    }
    return absl::OkStatus();
  }

  bool IsForUs(const Json& claims) const {
    const auto audience = claims.find("aud");
    if (audience == claims.end()) return false;
    if (!audience->is_array()) return StringAt(claims, "aud") == rules_.audience;
    return std::any_of(audience->begin(), audience->end(), [&](const Json& one) {
      return one.is_string() && one.get<std::string>() == rules_.audience;
    });
  }

  const JwtRules rules_;
  const std::vector<Key> keys_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<JwtVerifier>> JwtVerifier::Create(JwtRules rules,
                                                                 absl::string_view jwks) {
  auto keys = ParseKeys(jwks, rules.algorithm);
  if (!keys.ok()) return keys.status();
  return std::make_unique<Verifier>(std::move(rules), *std::move(keys));
}

}  // namespace quantd::server
