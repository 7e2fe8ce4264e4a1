#include "server/config/config.h"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "quantd/config/v1/server_config.pb.h"

namespace quantd::server {
namespace {

constexpr size_t kMaxConfigBytes = size_t{1} << 20;

// Keeps the first mistake: what follows it is often its consequence.
class FirstMistake final : public google::protobuf::io::ErrorCollector {
 public:
  explicit FirstMistake(absl::string_view source) : source_(source) {}

  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    if (!message_.empty()) return;
    // Counted from 0; line -1 stands for the file as a whole.
    message_ = line < 0 ? absl::StrCat(source_, ": ", message)
                        : absl::StrCat(source_, ":", line + 1, ":", column + 1, ": ", message);
  }

  const std::string& message() const { return message_; }

 private:
  const std::string source_;
  std::string message_;
};

// 0 and the empty string mean "not given": the member keeps its default.
template <typename From, typename To>
void TakeIfGiven(const From& given, To& member) {
  if (given != From()) member = To(given);
}

LimitsConfig LimitsFrom(const config::v1::LimitsConfig& proto) {
  LimitsConfig limits;
  TakeIfGiven(proto.max_dimension(), limits.max_dimension);
  TakeIfGiven(proto.max_weight_bytes(), limits.max_weight_bytes);
  TakeIfGiven(proto.max_layers_per_job(), limits.max_layers_per_job);
  TakeIfGiven(proto.max_jobs_per_tenant(), limits.max_jobs_per_tenant);
  TakeIfGiven(proto.max_streams_per_tenant(), limits.max_streams_per_tenant);
  TakeIfGiven(proto.stream_credit_bytes(), limits.stream_credit_bytes);
  TakeIfGiven(proto.max_inline_bytes(), limits.max_inline_bytes);
  TakeIfGiven(proto.max_layer_bytes(), limits.max_layer_bytes);
  TakeIfGiven(proto.max_statistics_per_tenant(), limits.max_statistics_per_tenant);
  TakeIfGiven(proto.moment_cache_bytes(), limits.moment_cache_bytes);
  TakeIfGiven(proto.open_sum_bytes(), limits.open_sum_bytes);
  TakeIfGiven(proto.max_stored_bytes(), limits.max_stored_bytes);
  TakeIfGiven(proto.max_inflight_bytes(), limits.max_inflight_bytes);
  TakeIfGiven(proto.max_messages_per_second(), limits.max_messages_per_second);
  TakeIfGiven(proto.max_calls_per_tenant(), limits.max_calls_per_tenant);
  TakeIfGiven(proto.idle_stream_seconds(), limits.idle_stream_seconds);
  return limits;
}

RolesConfig RolesFrom(const google::protobuf::RepeatedField<int>& proto) {
  RolesConfig roles;
  for (const int role : proto) {
    roles.submit |= role == config::v1::SUBMIT;
    roles.read |= role == config::v1::READ;
    roles.admin |= role == config::v1::ADMIN;
  }
  if (roles == RolesConfig()) roles.submit = roles.read = true;
  return roles;
}

TenantConfig TenantFrom(const config::v1::TenantConfig& from) {
  TenantConfig tenant;
  tenant.name = from.name();
  TakeIfGiven(from.weight(), tenant.weight);
  tenant.max_running_layers = from.max_running_layers();
  tenant.max_device_seconds_per_day = from.max_device_seconds_per_day();
  TakeIfGiven(from.max_stored_bytes(), tenant.max_stored_bytes);
  if (!from.token_sha256().empty()) {
    tenant.tokens.push_back(
        {.id = "token", .sha256 = from.token_sha256(), .roles = {.submit = true, .read = true}});
  }
  for (const config::v1::TokenConfig& token : from.tokens()) {
    tenant.tokens.push_back({token.id(), token.sha256(), RolesFrom(token.roles())});
  }
  for (const config::v1::CertificateConfig& certificate : from.certificates()) {
    tenant.certificates.push_back(
        {certificate.uri(), certificate.dns(), RolesFrom(certificate.roles())});
  }
  tenant.max_messages_per_second = from.max_messages_per_second();
  tenant.max_calls = from.max_calls();
  return tenant;
}

JwtConfig JwtFrom(const config::v1::JwtConfig& from) {
  JwtConfig jwt;
  jwt.issuer = from.issuer();
  jwt.audience = from.audience();
  jwt.keys_file = from.keys_file();
  TakeIfGiven(from.algorithm(), jwt.algorithm);
  TakeIfGiven(from.tenant_claim(), jwt.tenant_claim);
  TakeIfGiven(from.role_claim(), jwt.role_claim);
  TakeIfGiven(from.clock_skew_seconds(), jwt.clock_skew_seconds);
  return jwt;
}

RetentionConfig RetentionFrom(const config::v1::RetentionConfig& proto) {
  RetentionConfig retention;
  retention.ended_jobs_seconds = proto.ended_jobs_seconds();
  retention.unused_statistics_seconds = proto.unused_statistics_seconds();
  retention.abandoned_uploads_seconds = proto.abandoned_uploads_seconds();
  retention.abandoned_statistics_seconds = proto.abandoned_statistics_seconds();
  TakeIfGiven(proto.sweep_interval_seconds(), retention.sweep_interval_seconds);
  return retention;
}

ServerConfig ConfigFrom(const config::v1::ServerConfig& proto) {
  ServerConfig config;
  TakeIfGiven(proto.listen(), config.listen);
  TakeIfGiven(proto.metrics_listen(), config.metrics_listen);
  TakeIfGiven(proto.data_dir(), config.data_dir);
  config.allow_insecure_listen = proto.allow_insecure_listen();
  for (const config::v1::TenantConfig& from : proto.tenants()) {
    config.tenants.push_back(TenantFrom(from));
  }
  config.tls_certificate_file = proto.tls_certificate_file();
  config.tls_private_key_file = proto.tls_private_key_file();
  config.tls_client_ca_file = proto.tls_client_ca_file();
  config.tls_require_client_certificate = proto.tls_require_client_certificate();
  if (proto.has_jwt()) config.jwt = JwtFrom(proto.jwt());
  config.audit_log_file = proto.audit_log_file();
  config.limits = LimitsFrom(proto.limits());
  TakeIfGiven(proto.durability().commit_bytes(), config.durability.commit_bytes);
  TakeIfGiven(proto.durability().commit_interval_ms(), config.durability.commit_interval_ms);
  TakeIfGiven(proto.cpu_threads(), config.cpu_threads);
  TakeIfGiven(proto.cpu_slots(), config.cpu_slots);
  TakeIfGiven(proto.devices(), config.devices);
  TakeIfGiven(proto.cuda_slots(), config.cuda_slots);
  config.shared_memory = proto.shared_memory();
  config.cuda_ipc = proto.cuda_ipc();
  TakeIfGiven(proto.log_level(), config.log_level);
  TakeIfGiven(proto.drain_seconds(), config.drain_seconds);
  TakeIfGiven(proto.priority_ageing_seconds(), config.priority_ageing_seconds);
  config.retention = RetentionFrom(proto.retention());
  return config;
}

}  // namespace

absl::StatusOr<ServerConfig> ParseConfig(absl::string_view text, absl::string_view source) {
  if (text.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": expected at most ", kMaxConfigBytes, " bytes, got ", text.size()));
  }
  FirstMistake mistake(source);
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&mistake);
  config::v1::ServerConfig proto;
  if (!parser.ParseFromString(std::string(text), &proto)) {
    return absl::InvalidArgumentError(mistake.message());
  }
  return ConfigFrom(proto);
}

absl::StatusOr<ServerConfig> LoadConfig(const std::string& path) {
  std::error_code not_there;  // is met again below
  if (std::filesystem::is_directory(path, not_there)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a file, got a directory"));
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || file.bad()) {
    return absl::ErrnoToStatus(errno == 0 ? EIO : errno, absl::StrCat("read ", path));
  }
  return ParseConfig(text.str(), path);
}

}  // namespace quantd::server
