#include "server/config/config.h"

#include <fstream>
#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const std::string kToken(64, 'a');

TEST(ConfigTest, AnEmptyFileIsTheDefaultAndValid) {
  const auto config = ParseConfig("# nothing\n", "quantd.textproto");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->listen, "127.0.0.1:7741");
  EXPECT_EQ(config->metrics_listen, "127.0.0.1:7742");
  EXPECT_EQ(config->data_dir, "./data");
  EXPECT_FALSE(config->allow_insecure_listen);
  EXPECT_EQ(config->limits.max_dimension, 1 << 20);
  EXPECT_EQ(config->limits.max_weight_bytes, int64_t{8} << 30);
  EXPECT_EQ(config->limits.max_layers_per_job, 4096);
  EXPECT_EQ(config->limits.max_jobs_per_tenant, 1000);
  EXPECT_EQ(config->limits.max_streams_per_tenant, 64);
  EXPECT_EQ(config->limits.stream_credit_bytes, 16 << 20);
  EXPECT_EQ(config->limits.max_inline_bytes, 1 << 20);
  EXPECT_EQ(config->limits.max_layer_bytes, 0);
  EXPECT_EQ(config->limits.max_statistics_per_tenant, 10000);
  EXPECT_EQ(config->durability.commit_bytes, 64 << 20);
  EXPECT_EQ(config->durability.commit_interval_ms, 1000);
  EXPECT_EQ(config->cpu_threads, 0);
  EXPECT_EQ(config->cpu_slots, 1);
  EXPECT_EQ(config->log_level, "info");
  EXPECT_EQ(config->drain_seconds, 20);
  EXPECT_FALSE(config->shared_memory);
  EXPECT_FALSE(config->cuda_ipc);
  EXPECT_TRUE(Validate(*config).ok());
}

TenantConfig Tenant(const std::string& name, const std::string& sha256, double weight) {
  return {.name = name,
          .weight = weight,
          .tokens = {{.id = "token", .sha256 = sha256, .roles = {.submit = true, .read = true}}},
          .certificates = {}};
}

TEST(ConfigTest, EveryFieldIsRead) {
  const auto config = ParseConfig(R"pb(
                                    listen: "[::1]:1"
                                    metrics_listen: "localhost:2"
                                    data_dir: "/d"
                                    allow_insecure_listen: true
                                    tenants {
                                      name: "acme"
                                      token_sha256: "ab"
                                      weight: 2.5
                                      max_running_layers: 17
                                      max_device_seconds_per_day: 0.5
                                    }
                                    tenants {
                                      name: "other"
                                      max_stored_bytes: 36
                                      tokens { id: "ci" sha256: "cd" roles: READ roles: ADMIN }
                                      tokens { id: "x" sha256: "ef" }
                                      certificates { uri: "spiffe://a/b" roles: SUBMIT }
                                      certificates { dns: "a.example" }
                                    }
                                    tls_client_ca_file: "ca.pem"
                                    tls_require_client_certificate: true
                                    jwt {
                                      issuer: "i"
                                      audience: "a"
                                      algorithm: "ES256"
                                      keys_file: "k"
                                      tenant_claim: "t"
                                      role_claim: "r"
                                      clock_skew_seconds: 5
                                    }
                                    audit_log_file: "audit"
                                    tls_certificate_file: "c.pem"
                                    tls_private_key_file: "k.pem"
                                    limits {
                                      max_dimension: 3
                                      max_weight_bytes: 4
                                      max_layers_per_job: 5
                                      max_jobs_per_tenant: 6
                                      max_streams_per_tenant: 7
                                      stream_credit_bytes: 8
                                      max_inline_bytes: 9
                                      max_layer_bytes: 10
                                      max_statistics_per_tenant: 11
                                      max_stored_bytes: 30
                                    }
                                    retention {
                                      ended_jobs_seconds: 31
                                      unused_statistics_seconds: 32
                                      abandoned_uploads_seconds: 33
                                      abandoned_statistics_seconds: 34
                                      sweep_interval_seconds: 35
                                    }
                                    durability { commit_bytes: 12 commit_interval_ms: 13 }
                                    cpu_threads: 14
                                    cpu_slots: 15
                                    log_level: "debug"
                                    drain_seconds: 16
                                    shared_memory: true
                                    cuda_ipc: true
                                    priority_ageing_seconds: 18
                                  )pb",
                                  "quantd.textproto");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->listen, "[::1]:1");
  EXPECT_EQ(config->metrics_listen, "localhost:2");
  EXPECT_EQ(config->data_dir, "/d");
  EXPECT_TRUE(config->allow_insecure_listen);
  ASSERT_EQ(config->tenants.size(), 2u);
  EXPECT_EQ(config->tenants[0].name, "acme");
  EXPECT_EQ(config->tenants[0].tokens,
            (std::vector<TokenConfig>{{"token", "ab", {.submit = true, .read = true}}}));
  EXPECT_EQ(config->tenants[1].tokens,
            (std::vector<TokenConfig>{{"ci", "cd", {.read = true, .admin = true}},
                                      {"x", "ef", {.submit = true, .read = true}}}));
  EXPECT_EQ(config->tenants[1].certificates,
            (std::vector<CertificateConfig>{{"spiffe://a/b", "", {.submit = true}},
                                            {"", "a.example", {.submit = true, .read = true}}}));
  EXPECT_EQ(config->tls_client_ca_file, "ca.pem");
  EXPECT_TRUE(config->tls_require_client_certificate);
  EXPECT_EQ(config->jwt, (JwtConfig{"i", "a", "ES256", "k", "t", "r", 5}));
  EXPECT_EQ(config->audit_log_file, "audit");
  EXPECT_EQ(config->tenants[0].weight, 2.5);
  EXPECT_EQ(config->tenants[1].name, "other");
  EXPECT_EQ(config->tenants[0].max_running_layers, 17);
  EXPECT_EQ(config->tenants[0].max_device_seconds_per_day, 0.5);
  EXPECT_EQ(config->tenants[1].weight, 1.0);
  EXPECT_EQ(config->tenants[1].max_running_layers, 0);
  EXPECT_EQ(config->tls_certificate_file, "c.pem");
  EXPECT_EQ(config->tls_private_key_file, "k.pem");
  EXPECT_EQ(config->limits.max_dimension, 3);
  EXPECT_EQ(config->limits.max_weight_bytes, 4);
  EXPECT_EQ(config->limits.max_layers_per_job, 5);
  EXPECT_EQ(config->limits.max_jobs_per_tenant, 6);
  EXPECT_EQ(config->limits.max_streams_per_tenant, 7);
  EXPECT_EQ(config->limits.stream_credit_bytes, 8);
  EXPECT_EQ(config->limits.max_inline_bytes, 9);
  EXPECT_EQ(config->limits.max_layer_bytes, 10);
  EXPECT_EQ(config->limits.max_statistics_per_tenant, 11);
  EXPECT_EQ(config->limits.max_stored_bytes, 30);
  EXPECT_EQ(config->tenants[1].max_stored_bytes, 36);
  EXPECT_EQ(config->retention.ended_jobs_seconds, 31);
  EXPECT_EQ(config->retention.unused_statistics_seconds, 32);
  EXPECT_EQ(config->retention.abandoned_uploads_seconds, 33);
  EXPECT_EQ(config->retention.abandoned_statistics_seconds, 34);
  EXPECT_EQ(config->retention.sweep_interval_seconds, 35);
  EXPECT_EQ(config->durability.commit_bytes, 12);
  EXPECT_EQ(config->durability.commit_interval_ms, 13);
  EXPECT_EQ(config->cpu_threads, 14);
  EXPECT_EQ(config->cpu_slots, 15);
  EXPECT_EQ(config->log_level, "debug");
  EXPECT_EQ(config->drain_seconds, 16);
  EXPECT_EQ(config->priority_ageing_seconds, 18);
  EXPECT_TRUE(config->shared_memory);
  EXPECT_TRUE(config->cuda_ipc);
}

TEST(ConfigTest, AMistakeIsNamedWithItsPlace) {
  const struct {
    const char* text;
    const char* place;
    const char* message;
  } cases[] = {
      {"listen: \"a:1\"\nlimit { }\n", "q.conf:2:7: ", "limit"},
      {"limits {\n  max_dimension: \"x\"\n}", "q.conf:2:18: ", "integer"},
      {"cpu_threads: 99999999999", "q.conf:1:14: ", "out of range"},
      {"cpu_threads: 1\ncpu_threads: 2", "q.conf:2:", "cpu_threads"},
      {"limits {", "q.conf:1:9: ", "Expected"},
      {"listen: \"unfinished\n", "q.conf:1:", "String"},
  };
  for (const auto& c : cases) {
    const auto config = ParseConfig(c.text, "q.conf");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(c.place));
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(c.message));
  }
}

TEST(ConfigTest, FilesAreRead) {
  TempDirectory directory;
  const std::string path = directory.File("quantd.textproto");
  EXPECT_EQ(LoadConfig(path).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(LoadConfig(directory.path()).ok());
  std::ofstream(path) << "cpu_slots: 3\n";
  const auto config = LoadConfig(path);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->cpu_slots, 3);
  std::ofstream(path) << "\n\n  oops";
  EXPECT_THAT(std::string(LoadConfig(path).status().message()), HasSubstr(path + ":3:"));
  std::ofstream(path) << "";
  EXPECT_TRUE(LoadConfig(path).ok());
  std::ofstream(path) << std::string((1 << 20) + 1, '#');
  EXPECT_FALSE(LoadConfig(path).ok());
}

using Change = std::function<void(ServerConfig&)>;

TEST(ValidateTest, EveryMistakeNamesItsField) {
  const struct {
    const char* message;
    Change change;
  } cases[] = {
      {"listen: expected HOST:PORT", [](auto& c) { c.listen = "7741"; }},
      {"metrics_listen: expected HOST:PORT", [](auto& c) { c.metrics_listen = "x:y"; }},
      {"metrics_listen: expected another address", [](auto& c) { c.metrics_listen = c.listen; }},
      {"data_dir: ", [](auto& c) { c.data_dir = ""; }},
      {"tls_private_key_file: ", [](auto& c) { c.tls_certificate_file = "c"; }},
      {"tls_certificate_file: ", [](auto& c) { c.tls_private_key_file = "k"; }},
      {"log_level: expected debug, info, warning or error, got 'loud'",
       [](auto& c) { c.log_level = "loud"; }},
      {"limits.max_dimension: expected 1 to 1048576, got 1048577",
       [](auto& c) { c.limits.max_dimension = (1 << 20) + 1; }},
      {"limits.max_weight_bytes: expected at least 1, got -5",
       [](auto& c) { c.limits.max_weight_bytes = -5; }},
      {"limits.max_layers_per_job: ", [](auto& c) { c.limits.max_layers_per_job = -1; }},
      {"limits.max_jobs_per_tenant: ", [](auto& c) { c.limits.max_jobs_per_tenant = -1; }},
      {"limits.max_streams_per_tenant: ", [](auto& c) { c.limits.max_streams_per_tenant = -1; }},
      {"limits.stream_credit_bytes: ", [](auto& c) { c.limits.stream_credit_bytes = 1; }},
      {"limits.max_inline_bytes: ", [](auto& c) { c.limits.max_inline_bytes = 5 << 20; }},
      {"limits.max_layer_bytes: ", [](auto& c) { c.limits.max_layer_bytes = -1; }},
      {"limits.max_statistics_per_tenant: ",
       [](auto& c) { c.limits.max_statistics_per_tenant = -1; }},
      {"durability.commit_bytes: ", [](auto& c) { c.durability.commit_bytes = -1; }},
      {"durability.commit_interval_ms: ", [](auto& c) { c.durability.commit_interval_ms = -1; }},
      {"cpu_threads: ", [](auto& c) { c.cpu_threads = -1; }},
      {"cpu_slots: ", [](auto& c) { c.cpu_slots = 0; }},
      {"drain_seconds: ", [](auto& c) { c.drain_seconds = -1; }},
      {"limits.max_stored_bytes: ", [](auto& c) { c.limits.max_stored_bytes = -1; }},
      {"retention.ended_jobs_seconds: ", [](auto& c) { c.retention.ended_jobs_seconds = -1; }},
      {"retention.sweep_interval_seconds: ",
       [](auto& c) { c.retention.sweep_interval_seconds = 0; }},
      {"tenants[0].name: expected [a-z0-9-]{1,63}, got 'Acme'",
       [](auto& c) { c.tenants = {Tenant("Acme", kToken, 1)}; }},
      {"tenants[0].name: ", [](auto& c) { c.tenants = {Tenant(std::string(64, 'a'), kToken, 1)}; }},
      {"tenants[1].name: 'a' is there twice",
       [](auto& c) {
         c.tenants = {Tenant("a", kToken, 1), Tenant("a", std::string(64, 'b'), 1)};
       }},
      {"tenants[1].token_sha256: another tenant",
       [](auto& c) {
         c.tenants = {Tenant("a", kToken, 1), Tenant("b", std::string(64, 'A'), 1)};
       }},
      {"tenants[0].weight: ", [](auto& c) { c.tenants = {Tenant("a", kToken, -1)}; }},
      {"tenants[0]: expected token_sha256, tokens or certificates",
       [](auto& c) { c.tenants = {{.name = "a"}}; }},
      {"tenants[0].id: ",
       [](auto& c) {
         c.tenants = {Tenant("a", kToken, 1)};
         c.tenants[0].tokens[0].id = "no id";
       }},
      {"tenants[0].tokens: the id 'token' is there twice",
       [](auto& c) {
         c.tenants = {Tenant("a", kToken, 1)};
         c.tenants[0].tokens.push_back({"token", std::string(64, 'c'), {}});
       }},
      {"tenants[0].certificates: need tls_client_ca_file",
       [](auto& c) {
         c.tenants = {Tenant("a", kToken, 1)};
         c.tenants[0].certificates = {{.uri = "u"}};
       }},
      {"tenants[0].certificates: expected one of uri and dns",
       [](auto& c) {
         c.tls_certificate_file = c.tls_private_key_file = c.tls_client_ca_file = "x";
         c.tenants = {Tenant("a", kToken, 1)};
         c.tenants[0].certificates = {{.uri = "u", .dns = "d"}};
       }},
      {"tenants[1].certificates: 'D' is there twice",
       [](auto& c) {
         c.tls_certificate_file = c.tls_private_key_file = c.tls_client_ca_file = "x";
         c.tenants = {{.name = "a", .certificates = {{.dns = "d"}}},
                      {.name = "b", .certificates = {{.dns = "D"}}}};
       }},
      {"tls_client_ca_file: needs", [](auto& c) { c.tls_client_ca_file = "ca"; }},
      {"tls_require_client_certificate: needs",
       [](auto& c) { c.tls_require_client_certificate = true; }},
      {"jwt.audience: ",
       [](auto& c) {
         c.tenants = {{.name = "a"}};
         c.jwt = {.issuer = "i", .keys_file = "k"};
       }},
      {"jwt: expected tenants",
       [](auto& c) { c.jwt = {.issuer = "i", .audience = "a", .keys_file = "k"}; }},
      {"jwt.algorithm: expected RS, PS or ES with 256, 384 or 512, got 'HS256'",
       [](auto& c) {
         c.tenants = {{.name = "a"}};
         c.jwt = {.issuer = "i", .audience = "a", .algorithm = "HS256", .keys_file = "k"};
       }},
      {"tenants[0].max_running_layers: expected at least 1, or 0 for no limit, got -1",
       [](auto& c) {
         c.tenants = {Tenant("a", kToken, 1)};
         c.tenants[0].max_running_layers = -1;
       }},
      {"tenants[0].max_device_seconds_per_day: expected more than 0, or 0 for no limit, got -2",
       [](auto& c) {
         c.tenants = {Tenant("a", kToken, 1)};
         c.tenants[0].max_device_seconds_per_day = -2;
       }},
      {"priority_ageing_seconds: expected 1 to 2592000, got 0",
       [](auto& c) { c.priority_ageing_seconds = 0; }},
      {"tenants[0].weight: ",
       [](auto& c) {
         c.tenants = {Tenant("a", kToken, std::numeric_limits<double>::quiet_NaN())};
       }},
  };
  for (const auto& c : cases) {
    ServerConfig config;
    c.change(config);
    const absl::Status status = Validate(config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(status.message()), ::testing::StartsWith(c.message));
  }
}

TEST(ValidateTest, ATokenInPlaceOfItsHashIsNotRepeated) {
  ServerConfig config;
  config.tenants = {Tenant("acme", "very-secret", 1)};
  const absl::Status status = Validate(config);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tenants[0].token_sha256: expected 64"));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("very-secret")));
}

TEST(ValidateTest, AnExposedListenerNeedsTlsAndCredentialsOrConsent) {
  const auto with = [](const std::string& listen, bool tls, bool tenants, bool allowed) {
    ServerConfig config;
    config.listen = listen;
    if (tls) config.tls_certificate_file = config.tls_private_key_file = "x.pem";
    if (tenants) config.tenants = {Tenant("acme", kToken, 1)};
    config.allow_insecure_listen = allowed;
    return Validate(config);
  };
  for (const char* address : {"0.0.0.0:7741", "[::]:7741", "10.1.2.3:7741", "example.org:7741"}) {
    const absl::Status open = with(address, false, false, false);
    EXPECT_EQ(open.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(open.message()), HasSubstr("no TLS and credentials"));
    EXPECT_THAT(std::string(open.message()), HasSubstr("allow_insecure_listen"));
    EXPECT_THAT(std::string(with(address, false, true, false).message()), HasSubstr("no TLS."));
    EXPECT_THAT(std::string(with(address, true, false, false).message()),
                HasSubstr("no credentials."));
    EXPECT_TRUE(with(address, true, true, false).ok());
    EXPECT_TRUE(with(address, false, false, true).ok());
  }
  for (const char* address : {"127.0.0.1:7741", "[::1]:7741", "localhost:0"}) {
    EXPECT_TRUE(with(address, false, false, false).ok());
  }
}

}  // namespace
}  // namespace quantd::server
