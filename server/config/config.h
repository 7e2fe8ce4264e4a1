#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quantd::server {

// What a credential allows; none implies another.
struct RolesConfig {
  bool submit = false;
  bool read = false;
  bool admin = false;
  bool operator==(const RolesConfig&) const = default;
};

struct TokenConfig {
  std::string id;      // [a-z0-9-]{1,63}
  std::string sha256;  // 64 hexadecimal digits
  RolesConfig roles;
  bool operator==(const TokenConfig&) const = default;
};

// A subject alternative name: one of the two.
struct CertificateConfig {
  std::string uri = {};
  std::string dns = {};
  RolesConfig roles = {};
  bool operator==(const CertificateConfig&) const = default;
};

// One caller. Mirrors quantd.config.v1.TenantConfig.
struct TenantConfig {
  std::string name;                      // [a-z0-9-]{1,63}
  double weight = 1.0;                   // share of device time under contention
  std::vector<TokenConfig> tokens = {};  // token_sha256 is the first of them, "token"
  std::vector<CertificateConfig> certificates = {};
  int max_running_layers = 0;             // 0: no limit
  double max_device_seconds_per_day = 0;  // 0: no limit
  int64_t max_stored_bytes = 0;           // 0: limits.max_stored_bytes
  double max_messages_per_second = 0;     // 0: limits.max_messages_per_second
  int max_calls = 0;                      // 0: limits.max_calls_per_tenant
  bool operator==(const TenantConfig&) const = default;
};

struct JwtConfig {
  std::string issuer = {};
  std::string audience = {};
  std::string algorithm = "RS256";
  std::string keys_file = {};
  std::string tenant_claim = "tenant";
  std::string role_claim = "roles";
  int clock_skew_seconds = 30;
  bool operator==(const JwtConfig&) const = default;
};

struct LimitsConfig {
  int64_t max_dimension = int64_t{1} << 20;
  int64_t max_weight_bytes = int64_t{8} << 30;
  int max_layers_per_job = 4096;
  int max_jobs_per_tenant = 1000;
  int max_streams_per_tenant = 64;
  int64_t stream_credit_bytes = int64_t{16} << 20;
  int64_t max_inline_bytes = int64_t{1} << 20;
  int64_t max_layer_bytes = 0;  // 0: 3/4 of the device's memory
  int max_statistics_per_tenant = 10000;
  int64_t moment_cache_bytes = 0;  // 0: 1/8 of the machine's memory
  int64_t open_sum_bytes = 0;      // 0: 1/4 of the device's memory
  int64_t max_stored_bytes = 0;    // of each tenant; 0: no limit
  int64_t max_inflight_bytes = 0;  // 0: 1/8 of the machine's memory
  double max_messages_per_second = 20'000;
  int max_calls_per_tenant = 1024;
  int idle_stream_seconds = 600;
  bool operator==(const LimitsConfig&) const = default;
};

struct DurabilityConfig {
  int64_t commit_bytes = int64_t{64} << 20;
  int commit_interval_ms = 1000;
  bool operator==(const DurabilityConfig&) const = default;
};

// Seconds after which things are deleted; 0: never.
struct RetentionConfig {
  int64_t ended_jobs_seconds = 0;
  int64_t unused_statistics_seconds = 0;
  int64_t abandoned_uploads_seconds = 0;
  int64_t abandoned_statistics_seconds = 0;
  int sweep_interval_seconds = 60;
  bool operator==(const RetentionConfig&) const = default;
};

// The server's configuration with the defaults of proto/quantd/config/v1/server_config.proto, where
// every field is described. A value type.
struct ServerConfig {
  std::string listen = "127.0.0.1:7741";
  std::string metrics_listen = "127.0.0.1:7742";
  std::string data_dir = "./data";
  bool allow_insecure_listen = false;
  std::vector<TenantConfig> tenants;
  std::string tls_certificate_file;
  std::string tls_private_key_file;
  std::string tls_client_ca_file;
  bool tls_require_client_certificate = false;
  std::optional<JwtConfig> jwt;
  std::string audit_log_file;
  LimitsConfig limits;
  DurabilityConfig durability;
  int cpu_threads = 0;  // 0: one a core
  int cpu_slots = 1;
  std::string devices = "auto";
  int cuda_slots = 8;
  bool shared_memory = false;
  bool cuda_ipc = false;
  std::string log_level = "info";
  int drain_seconds = 20;
  int priority_ageing_seconds = 3600;
  RetentionConfig retention;
  bool operator==(const ServerConfig&) const = default;
};

// Reads protobuf text format (quantd.config.v1.ServerConfig). A field that is absent or 0 takes its
// default. INVALID_ARGUMENT names `source`, line and column of the first mistake.
absl::StatusOr<ServerConfig> ParseConfig(absl::string_view text, absl::string_view source);
// NOT_FOUND or PERMISSION_DENIED for a file that cannot be read; else as ParseConfig.
absl::StatusOr<ServerConfig> LoadConfig(const std::string& path);

// Checks a whole configuration, after flags have been applied: addresses, ranges, names, and that a
// plain or open endpoint is not reachable from other machines unless that was asked for.
// INVALID_ARGUMENT names the field, what was expected and what came, and what to do.
absl::Status Validate(const ServerConfig& config);

}  // namespace quantd::server
