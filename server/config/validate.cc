#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/config/address.h"
#include "server/config/config.h"

namespace quantd::server {
namespace {

constexpr int64_t kMaxDimension = int64_t{1} << 20;
constexpr int64_t kMaxMessageBytes = int64_t{4} << 20;
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr int64_t kMaxSeconds = int64_t{100} * 366 * 86'400;  // a hundred years
constexpr size_t kMaxNameBytes = 63;
constexpr size_t kSha256HexDigits = 64;
constexpr double kLargestWeight = 1e6;
constexpr double kLargestRate = 1e9;

template <typename... Parts>
absl::Status Refuse(absl::string_view field, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", parts...));
}

struct Range {
  absl::string_view field;
  int64_t value;
  int64_t least;
  int64_t most;
};

absl::Status CheckRate(absl::string_view field, double rate, double least) {
  if (rate >= least && rate <= kLargestRate) return absl::OkStatus();
  return Refuse(field, "expected ", least, " to ", kLargestRate, ", got ", rate);
}

absl::Status CheckRanges(const ServerConfig& config) {
  const LimitsConfig& limits = config.limits;
  const DurabilityConfig& durability = config.durability;
  const RetentionConfig& retention = config.retention;
  const Range ranges[] = {
      {"limits.max_dimension", limits.max_dimension, 1, kMaxDimension},
      {"limits.max_weight_bytes", limits.max_weight_bytes, 1, kMaxInt64},
      {"limits.max_layers_per_job", limits.max_layers_per_job, 1, 1 << 16},
      {"limits.max_jobs_per_tenant", limits.max_jobs_per_tenant, 1, 1'000'000},
      {"limits.max_streams_per_tenant", limits.max_streams_per_tenant, 1, 1 << 16},
      // At least one chunk of the largest size has to be in flight.
      {"limits.stream_credit_bytes", limits.stream_credit_bytes, kMaxMessageBytes, kMaxInt64},
      // Has to fit into a message beside its framing.
      {"limits.max_inline_bytes", limits.max_inline_bytes, 1, kMaxMessageBytes - (64 << 10)},
      {"limits.max_layer_bytes", limits.max_layer_bytes, 0, kMaxInt64},
      {"limits.max_statistics_per_tenant", limits.max_statistics_per_tenant, 1, 10'000'000},
      {"limits.moment_cache_bytes", limits.moment_cache_bytes, 0, kMaxInt64},
      {"limits.open_sum_bytes", limits.open_sum_bytes, 0, kMaxInt64},
      {"limits.max_stored_bytes", limits.max_stored_bytes, 0, kMaxInt64},
      {"retention.ended_jobs_seconds", retention.ended_jobs_seconds, 0, kMaxSeconds},
      {"retention.unused_statistics_seconds", retention.unused_statistics_seconds, 0, kMaxSeconds},
      {"retention.abandoned_uploads_seconds", retention.abandoned_uploads_seconds, 0, kMaxSeconds},
      {"retention.abandoned_statistics_seconds", retention.abandoned_statistics_seconds, 0,
       kMaxSeconds},
      {"retention.sweep_interval_seconds", retention.sweep_interval_seconds, 1, 86'400},
      {"limits.max_inflight_bytes", limits.max_inflight_bytes, 0, kMaxInt64},
      {"limits.max_calls_per_tenant", limits.max_calls_per_tenant, 1, 10'000'000},
      {"limits.idle_stream_seconds", limits.idle_stream_seconds, 1, 86'400},
      {"durability.commit_bytes", durability.commit_bytes, 1, int64_t{1} << 40},
      {"durability.commit_interval_ms", durability.commit_interval_ms, 1, 3'600'000},
      {"cpu_threads", config.cpu_threads, 0, 4096},
      {"cpu_slots", config.cpu_slots, 1, 1024},
      {"cuda_slots", config.cuda_slots, 1, 64},
      {"drain_seconds", config.drain_seconds, 0, 86'400},
      {"priority_ageing_seconds", config.priority_ageing_seconds, 1, 30 * 86'400},
  };
  for (const Range& range : ranges) {
    if (range.value < range.least || range.value > range.most) {
      const std::string expected = range.most == kMaxInt64
                                       ? absl::StrCat("at least ", range.least)
                                       : absl::StrCat(range.least, " to ", range.most);
      return Refuse(range.field, "expected ", expected, ", got ", range.value);
    }
  }
  return CheckRate("limits.max_messages_per_second", limits.max_messages_per_second, 1);
}

bool IsTenantName(absl::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes) return false;
  for (const char c : name) {
    if (!absl::ascii_islower(c) && !absl::ascii_isdigit(c) && c != '-') return false;
  }
  return true;
}

bool IsSha256Hex(absl::string_view text) {
  if (text.size() != kSha256HexDigits) return false;
  for (const char c : text) {
    if (!absl::ascii_isxdigit(c)) return false;
  }
  return true;
}

// Never repeats the value: a token itself may stand there by mistake.
absl::Status CheckToken(const std::string& field, const TokenConfig& token,
                        std::set<std::string>& hashes) {
  if (!IsTenantName(token.id)) {
    return Refuse(absl::StrCat(field, ".id"), "expected [a-z0-9-]{1,63}, got ", token.id.size(),
                  " other characters");
  }
  if (!IsSha256Hex(token.sha256)) {
    return Refuse(absl::StrCat(field, ".token_sha256"),
                  "expected 64 hexadecimal digits (printf %s TOKEN | sha256sum), got ",
                  token.sha256.size(), " other characters");
  }
  if (!hashes.insert(absl::AsciiStrToLower(token.sha256)).second) {
    return Refuse(absl::StrCat(field, ".token_sha256"),
                  "another tenant has the same token; each needs its own");
  }
  return absl::OkStatus();
}

absl::Status CheckCertificate(const std::string& field, const CertificateConfig& certificate,
                              std::set<std::string>& names) {
  if (certificate.uri.empty() == certificate.dns.empty()) {
    return Refuse(field, "expected one of uri and dns");
  }
  if (!names.insert(absl::StrCat(certificate.uri, " ", absl::AsciiStrToLower(certificate.dns)))
           .second) {
    return Refuse(field, "'", certificate.uri, certificate.dns, "' is there twice");
  }
  return absl::OkStatus();
}

// Names and credentials that have been seen, over all tenants.
struct Seen {
  std::set<std::string> names;
  std::set<std::string> hashes;
  std::set<std::string> certificates;
};

absl::Status CheckTenant(const ServerConfig& config, const std::string& field,
                         const TenantConfig& tenant, Seen& seen) {
  if (!IsTenantName(tenant.name)) {
    return Refuse(absl::StrCat(field, ".name"), "expected [a-z0-9-]{1,63}, got '", tenant.name,
                  "'");
  }
  if (!seen.names.insert(tenant.name).second) {
    return Refuse(absl::StrCat(field, ".name"), "'", tenant.name, "' is there twice");
  }
  if (tenant.tokens.empty() && tenant.certificates.empty() && !config.jwt.has_value()) {
    return Refuse(field, "expected token_sha256, tokens or certificates: nobody can be '",
                  tenant.name, "'");
  }
  std::set<std::string> ids;
  for (const TokenConfig& token : tenant.tokens) {
    if (auto s = CheckToken(field, token, seen.hashes); !s.ok()) return s;
    if (!ids.insert(token.id).second) {
      return Refuse(absl::StrCat(field, ".tokens"), "the id '", token.id, "' is there twice");
    }
  }
  if (!tenant.certificates.empty() && config.tls_client_ca_file.empty()) {
    return Refuse(absl::StrCat(field, ".certificates"), "need tls_client_ca_file");
  }
  for (const CertificateConfig& certificate : tenant.certificates) {
    const std::string place = absl::StrCat(field, ".certificates");
    if (auto s = CheckCertificate(place, certificate, seen.certificates); !s.ok()) return s;
  }
  if (tenant.max_stored_bytes < 0) {
    return Refuse(absl::StrCat(field, ".max_stored_bytes"), "expected at least 0, got ",
                  tenant.max_stored_bytes);
  }
  if (tenant.max_calls < 0) {
    return Refuse(absl::StrCat(field, ".max_calls"), "expected 0 or more, got ", tenant.max_calls);
  }
  if (auto s = CheckRate(absl::StrCat(field, ".max_messages_per_second"),
                         tenant.max_messages_per_second, 0);
      !s.ok()) {
    return s;
  }
  if (!std::isfinite(tenant.weight) || tenant.weight <= 0 || tenant.weight > kLargestWeight) {
    return Refuse(absl::StrCat(field, ".weight"), "expected more than 0 and at most ",
                  kLargestWeight, ", got ", tenant.weight);
  }
  if (tenant.max_running_layers < 0) {
    return Refuse(absl::StrCat(field, ".max_running_layers"),
                  "expected at least 1, or 0 for no limit, got ", tenant.max_running_layers);
  }
  const double seconds = tenant.max_device_seconds_per_day;
  if (!std::isfinite(seconds) || seconds < 0) {
    return Refuse(absl::StrCat(field, ".max_device_seconds_per_day"),
                  "expected more than 0, or 0 for no limit, got ", seconds);
  }
  return absl::OkStatus();
}

absl::Status CheckTenants(const ServerConfig& config) {
  Seen seen;
  for (size_t i = 0; i < config.tenants.size(); ++i) {
    const std::string field = absl::StrCat("tenants[", i, "]");
    if (auto s = CheckTenant(config, field, config.tenants[i], seen); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CheckJwt(const ServerConfig& config) {
  if (!config.jwt.has_value()) return absl::OkStatus();
  const JwtConfig& jwt = *config.jwt;
  const std::pair<absl::string_view, absl::string_view> needed[] = {
      {"jwt.issuer", jwt.issuer}, {"jwt.audience", jwt.audience}, {"jwt.keys_file", jwt.keys_file}};
  for (const auto& [field, value] : needed) {
    if (value.empty()) return Refuse(field, "expected a value, got ''");
  }
  if (config.tenants.empty()) {
    return Refuse("jwt", "expected tenants beside it: a token names one of them");
  }
  const std::set<absl::string_view> algorithms = {"RS256", "RS384", "RS512", "PS256", "PS384",
                                                  "PS512", "ES256", "ES384", "ES512"};
  if (!algorithms.contains(jwt.algorithm)) {
    return Refuse("jwt.algorithm", "expected RS, PS or ES with 256, 384 or 512, got '",
                  jwt.algorithm, "'");
  }
  if (jwt.clock_skew_seconds < 0 || jwt.clock_skew_seconds > 600) {
    return Refuse("jwt.clock_skew_seconds", "expected 0 to 600, got ", jwt.clock_skew_seconds);
  }
  return absl::OkStatus();
}

absl::Status CheckTls(const ServerConfig& config) {
  if (config.tls_certificate_file.empty() != config.tls_private_key_file.empty()) {
    const bool has_key = !config.tls_private_key_file.empty();
    return Refuse(has_key ? "tls_certificate_file" : "tls_private_key_file",
                  "expected a PEM file, because ",
                  has_key ? "tls_private_key_file" : "tls_certificate_file", " is set, got ''");
  }
  if (!config.tls_client_ca_file.empty() && config.tls_certificate_file.empty()) {
    return Refuse("tls_client_ca_file", "needs tls_certificate_file and tls_private_key_file");
  }
  if (config.tls_require_client_certificate && config.tls_client_ca_file.empty()) {
    return Refuse("tls_require_client_certificate", "needs tls_client_ca_file");
  }
  return absl::OkStatus();
}

absl::Status CheckExposure(const ServerConfig& config, const Address& listen) {
  const bool has_tls = !config.tls_certificate_file.empty();
  const bool has_credentials = !config.tenants.empty();
  if (listen.IsLoopback() || config.allow_insecure_listen || (has_tls && has_credentials)) {
    return absl::OkStatus();
  }
  absl::string_view missing = "TLS and credentials";
  absl::string_view remedy = "tls_certificate_file, tls_private_key_file and tenants";
  if (has_credentials) {
    missing = "TLS";
    remedy = "tls_certificate_file and tls_private_key_file";
  } else if (has_tls) {
    missing = "credentials";
    remedy = "tenants";
  }
  return Refuse("listen", "'", config.listen,
                "' can be reached from other machines, but there is no ", missing, ". Set ", remedy,
                ", listen on 127.0.0.1, or set allow_insecure_listen if everyone who can reach the "
                "address may use this server");
}

absl::Status CheckAddress(absl::string_view field, absl::string_view text, Address& address) {
  auto parsed = ParseAddress(text);
  if (!parsed.ok()) return Refuse(field, parsed.status().message());
  address = *parsed;
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const ServerConfig& config) {
  Address listen;
  Address metrics_listen;
  if (auto s = CheckAddress("listen", config.listen, listen); !s.ok()) return s;
  if (auto s = CheckAddress("metrics_listen", config.metrics_listen, metrics_listen); !s.ok()) {
    return s;
  }
  if (listen.port != 0 && listen.port == metrics_listen.port &&
      listen.host == metrics_listen.host) {
    return Refuse("metrics_listen", "expected another address than listen's, got '",
                  config.metrics_listen, "' for both");
  }
  if (config.data_dir.empty()) return Refuse("data_dir", "expected a directory, got ''");
  if (auto s = CheckTls(config); !s.ok()) return s;
  const std::set<absl::string_view> levels = {"debug", "info", "warning", "error"};
  if (!levels.contains(config.log_level)) {
    return Refuse("log_level", "expected debug, info, warning or error, got '", config.log_level,
                  "'");
  }
  if (auto s = CheckRanges(config); !s.ok()) return s;
  if (auto s = CheckTenants(config); !s.ok()) return s;
  if (auto s = CheckJwt(config); !s.ok()) return s;
  return CheckExposure(config, listen);
}

}  // namespace quantd::server
