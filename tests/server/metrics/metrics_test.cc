#include "server/metrics/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quantd::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Row {
  std::string type;
  std::string labels;
  std::string help;
  friend bool operator==(const Row&, const Row&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Row& row) {
    return out << row.type << " {" << row.labels << "} " << row.help;
  }
};

// Rows of the tables of docs/metrics.md that start with the name of a metric in backquotes.
std::map<std::string, Row> DocumentedMetrics() {
  std::ifstream file(QUANTD_METRICS_DOCUMENT);
  EXPECT_TRUE(file.is_open()) << QUANTD_METRICS_DOCUMENT;
  std::map<std::string, Row> rows;
  std::string line;
  while (std::getline(file, line)) {
    if (!absl::StartsWith(line, "| `quantd_") && !absl::StartsWith(line, "| `process_")) continue;
    std::vector<std::string> cells = absl::StrSplit(line, '|');
    for (std::string& cell : cells) {
      cell = std::string(absl::StripAsciiWhitespace(cell));
      std::erase(cell, '`');
    }
    EXPECT_EQ(cells.size(), 7u) << line;
    if (cells.size() != 7u) continue;
    EXPECT_TRUE(rows.emplace(cells[1], Row{cells[2], cells[3], cells[5]}).second) << line;
  }
  return rows;
}

// Calls every method once, so that every family has a sample.
void UseEverything(Metrics& metrics) {
  metrics.RpcFinished("/quantd.v1.Jobs/GetJob", "OK", 0.002);
  metrics.Rejected("acme", "QUOTA_EXCEEDED");
  metrics.Rejected("", "UNAUTHENTICATED");
  metrics.StreamOpened(Traffic::kWeights);
  metrics.BytesIn("acme", Traffic::kActivations, 1000);
  metrics.BytesOut("acme", Traffic::kArtifacts, 2000);
  metrics.TokensAccumulated("acme", 300);
  metrics.ChunkDurable(0.02);
  metrics.CommitFinished(Traffic::kActivations, 0.01);
  metrics.LayerFinished("acme", "rtn", "mxfp4", "succeeded", 1.5);
  metrics.StageFinished("transform", 0.7);
  metrics.DeviceSeconds("acme", 1.5);
  metrics.QueueWait(2, 3);
  metrics.SetQuotaWaiting("max_running_layers", 4);
  metrics.SetPreemptions(1, 0);
  metrics.SetPreemptions(2, 5);
  metrics.JobExpired();
  metrics.SetQueueDepth({{"acme", 4}});
  metrics.SetRunningLayers("cpu:0", 1);
  metrics.SetDeviceMemory("cpu:0", 100, 200);
  metrics.SetDeviceActivity(
      "cpu:0", {.utilisation = 0.5, .power_watts = 300.0, .temperature_celsius = 40.0});
  metrics.SetStoredBytes({{"acme", 12345}});
  metrics.Collected("job");
  metrics.SetSyncFailures(2);
  metrics.SetOpenSums("cpu:0", 4096, 3, 5);
  metrics.SetServing(true);
  metrics.SetReady(true);
  metrics.SetDisk(300, 1000);
}

absl::Status Ready() { return absl::OkStatus(); }

// The text format's samples: "name{labels}" -> value.
std::map<std::string, double> Samples(const std::string& text) {
  std::map<std::string, double> samples;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    if (line[0] == '#') continue;
    const size_t blank = line.rfind(' ');
    samples.emplace(line.substr(0, blank), std::stod(std::string(line.substr(blank + 1))));
  }
  return samples;
}

TEST(MetricsTest, TheDocumentSaysWhatIsRegistered) {
  Metrics metrics({});
  std::map<std::string, Row> registered;
  for (const Metrics::Definition& d : metrics.definitions()) {
    registered.emplace(d.name, Row{d.type, absl::StrJoin(d.labels, ", "), d.help});
  }
  std::map<std::string, Row> documented = DocumentedMetrics();
  std::erase_if(documented,
                [](const auto& row) { return absl::StartsWith(row.first, "process_"); });
  EXPECT_EQ(documented, registered);
}

TEST(MetricsTest, AScrapeShowsWhatTheDocumentSays) {
  Metrics metrics({});
  UseEverything(metrics);
  std::map<std::string, std::pair<std::string, std::string>> scraped;  // name -> type, help
  std::map<std::string, std::string> help;
  for (absl::string_view line : absl::StrSplit(metrics.Text(), '\n', absl::SkipEmpty())) {
    const std::vector<std::string> words = absl::StrSplit(line, absl::MaxSplits(' ', 3));
    if (words.size() < 4 || words[0] != "#") continue;
    if (words[1] == "HELP") scraped[words[2]].second = words[3];
    if (words[1] == "TYPE") scraped[words[2]].first = words[3];
  }
  std::map<std::string, std::pair<std::string, std::string>> documented;
  for (const auto& [name, row] : DocumentedMetrics()) documented[name] = {row.type, row.help};
  EXPECT_EQ(scraped, documented);
}

TEST(MetricsTest, WhatADeviceNoLongerTellsHasNoSeries) {
  Metrics metrics({});
  const std::string series = R"(quantd_device_power_watts{device="cuda:0"})";
  metrics.SetDeviceActivity("cuda:0", {});
  EXPECT_FALSE(Samples(metrics.Text()).contains(series));
  Metrics::DeviceActivity activity;
  activity.power_watts = 300.0;
  metrics.SetDeviceActivity("cuda:0", activity);
  EXPECT_EQ(Samples(metrics.Text())[series], 300.0);
  metrics.SetDeviceActivity("cuda:0", {});
  EXPECT_FALSE(Samples(metrics.Text()).contains(series));
}

TEST(MetricsTest, NamesFollowTheConventions) {
  Metrics metrics({});
  for (const Metrics::Definition& d : metrics.definitions()) {
    EXPECT_TRUE(absl::StartsWith(d.name, "quantd_")) << d.name;
    EXPECT_EQ(absl::EndsWith(d.name, "_total"), d.type == "counter") << d.name;
    EXPECT_TRUE(d.type != "histogram" || absl::EndsWith(d.name, "_seconds")) << d.name;
    EXPECT_FALSE(d.help.empty()) << d.name;
  }
}

TEST(MetricsTest, EveryMethodMovesItsSample) {
  Metrics metrics({.version = "1.2.3", .backends = "cpu"});
  UseEverything(metrics);
  const std::map<std::string, double> samples = Samples(metrics.Text());
  const std::map<std::string, double> expected = {
      {R"(quantd_rpcs_total{code="OK",method="quantd.v1.Jobs/GetJob"})", 1},
      {R"(quantd_rpc_duration_seconds_count{method="quantd.v1.Jobs/GetJob"})", 1},
      {R"(quantd_rpc_duration_seconds_sum{method="quantd.v1.Jobs/GetJob"})", 0.002},
      {R"(quantd_rpc_duration_seconds_bucket{method="quantd.v1.Jobs/GetJob",le="0.001"})", 0},
      {R"(quantd_rpc_duration_seconds_bucket{method="quantd.v1.Jobs/GetJob",le="0.0025"})", 1},
      {R"(quantd_rejected_requests_total{reason="QUOTA_EXCEEDED",tenant="acme"})", 1},
      {R"(quantd_rejected_requests_total{reason="UNAUTHENTICATED",tenant=""})", 1},
      {R"(quantd_open_streams{kind="weights"})", 1},
      {R"(quantd_open_streams{kind="watch"})", 0},
      {R"(quantd_received_bytes_total{kind="activations",tenant="acme"})", 1000},
      {R"(quantd_sent_bytes_total{kind="artifacts",tenant="acme"})", 2000},
      {R"(quantd_accumulated_tokens_total{tenant="acme"})", 300},
      {R"(quantd_chunk_durable_seconds_sum)", 0.02},
      {R"(quantd_commit_duration_seconds_sum{kind="activations"})", 0.01},
      {R"(quantd_layers_total{format="mxfp4",method="rtn",outcome="succeeded",tenant="acme"})", 1},
      {R"(quantd_layer_duration_seconds_sum{format="mxfp4",method="rtn"})", 1.5},
      {R"(quantd_stage_duration_seconds_sum{stage="transform"})", 0.7},
      {R"(quantd_device_seconds_total{tenant="acme"})", 1.5},
      {R"(quantd_queue_wait_seconds_sum{priority="high"})", 3},
      {R"(quantd_quota_waiting_groups{quota="max_running_layers"})", 4},
      {R"(quantd_preemptions_total{reason="priority"})", 2},
      {R"(quantd_preemptions_total{reason="share"})", 5},
      {R"(quantd_expired_jobs_total)", 1},
      {R"(quantd_queue_depth{tenant="acme"})", 4},
      {R"(quantd_running_layers{device="cpu:0"})", 1},
      {R"(quantd_device_memory_used_bytes{device="cpu:0"})", 100},
      {R"(quantd_device_memory_bytes{device="cpu:0"})", 200},
      {R"(quantd_device_utilisation_ratio{device="cpu:0"})", 0.5},
      {R"(quantd_device_power_watts{device="cpu:0"})", 300},
      {R"(quantd_device_temperature_celsius{device="cpu:0"})", 40},
      {R"(quantd_stored_bytes{tenant="acme"})", 12345},
      {R"(quantd_serving)", 1},
      {R"(quantd_ready)", 1},
      {R"(quantd_sync_failures_total)", 2},
      {R"(quantd_open_sum_bytes{device="cpu:0"})", 4096},
      {R"(quantd_waiting_sums{device="cpu:0"})", 3},
      {R"(quantd_sum_page_outs_total{device="cpu:0"})", 5},
      {R"(quantd_disk_free_bytes)", 300},
      {R"(quantd_disk_bytes)", 1000},
  };
  for (const auto& [name, value] : expected) {
    const auto found = samples.find(name);
    ASSERT_NE(found, samples.end()) << name << "\n" << metrics.Text();
    EXPECT_DOUBLE_EQ(found->second, value) << name;
  }
  EXPECT_THAT(metrics.Text(), HasSubstr(R"(version="1.2.3")"));
  metrics.StreamClosed(Traffic::kWeights);
  EXPECT_EQ(Samples(metrics.Text())[R"(quantd_open_streams{kind="weights"})"], 0);
}

TEST(MetricsTest, TheProcessIsDescribedPlausibly) {
  Metrics metrics({});
  std::map<std::string, double> samples = Samples(metrics.Text());
  EXPECT_GT(samples["process_resident_memory_bytes"], 1 << 20);
  EXPECT_GE(samples["process_virtual_memory_bytes"], samples["process_resident_memory_bytes"]);
  EXPECT_GE(samples["process_open_fds"], 3);
  EXPECT_LE(samples["process_open_fds"], samples["process_max_fds"]);
  EXPECT_GT(samples["process_cpu_seconds_total"], 0);
  EXPECT_GT(samples["process_start_time_seconds"], 1.6e9);

  const int fd = ::dup(0);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(Samples(metrics.Text())["process_open_fds"], samples["process_open_fds"] + 1);
  ::close(fd);
}

TEST(MetricsTest, TheTenantLabelIsBounded) {
  Metrics metrics({.tenants = {"configured"}, .max_tenants = 3});
  for (int i = 0; i < 1000; ++i) metrics.TokensAccumulated(absl::StrCat("t", i), 1);
  metrics.TokensAccumulated("configured", 7);
  metrics.TokensAccumulated("t0", 1);
  std::map<std::string, double> tokens;
  for (const auto& [name, value] : Samples(metrics.Text())) {
    if (absl::StartsWith(name, "quantd_accumulated_tokens_total")) tokens[name] = value;
  }
  EXPECT_EQ(tokens, (std::map<std::string, double>{
                        {R"(quantd_accumulated_tokens_total{tenant="configured"})", 7},
                        {R"(quantd_accumulated_tokens_total{tenant="t0"})", 2},
                        {R"(quantd_accumulated_tokens_total{tenant="t1"})", 1},
                        {R"(quantd_accumulated_tokens_total{tenant="other"})", 998}}));
}

TEST(MetricsTest, TrafficAndRefusalsAreBoundedByTenant) {
  Metrics metrics({.tenants = {"configured"}, .max_tenants = 3});
  for (int i = 0; i < 1000; ++i) {
    const std::string tenant = absl::StrCat("t", i);
    metrics.BytesIn(tenant, Traffic::kWeights, 2);
    metrics.BytesOut(tenant, Traffic::kArtifacts, 3);
    metrics.Rejected(tenant, "MESSAGE_RATE");
  }
  metrics.Rejected("", "UNAUTHENTICATED");  // nobody takes no tenant's place
  const std::map<std::string, double> samples = Samples(metrics.Text());
  const auto value = [&](const std::string& name) {
    const auto found = samples.find(name);
    return found == samples.end() ? -1.0 : found->second;
  };
  EXPECT_EQ(value(R"(quantd_received_bytes_total{kind="weights",tenant="configured"})"), 0);
  EXPECT_EQ(value(R"(quantd_received_bytes_total{kind="weights",tenant="t1"})"), 2);
  EXPECT_EQ(value(R"(quantd_received_bytes_total{kind="weights",tenant="other"})"), 2 * 998);
  EXPECT_EQ(value(R"(quantd_sent_bytes_total{kind="artifacts",tenant="other"})"), 3 * 998);
  EXPECT_EQ(value(R"(quantd_rejected_requests_total{reason="MESSAGE_RATE",tenant="t0"})"), 1);
  EXPECT_EQ(value(R"(quantd_rejected_requests_total{reason="MESSAGE_RATE",tenant="other"})"), 998);
  EXPECT_EQ(value(R"(quantd_rejected_requests_total{reason="UNAUTHENTICATED",tenant=""})"), 1);
}

TEST(MetricsTest, GaugesOfTenantsAreReplacedAndOthersAddUp) {
  Metrics metrics({.max_tenants = 2});
  metrics.SetQueueDepth({{"a", 1}, {"b", 2}, {"c", 3}, {"d", 4}});
  std::map<std::string, double> samples = Samples(metrics.Text());
  EXPECT_EQ(samples[R"(quantd_queue_depth{tenant="a"})"], 1);
  EXPECT_EQ(samples[R"(quantd_queue_depth{tenant="other"})"], 7);
  metrics.SetQueueDepth({{"b", 5}});
  samples = Samples(metrics.Text());
  EXPECT_EQ(samples[R"(quantd_queue_depth{tenant="a"})"], 0);
  EXPECT_EQ(samples[R"(quantd_queue_depth{tenant="b"})"], 5);
  EXPECT_EQ(samples[R"(quantd_queue_depth{tenant="other"})"], 0);
}

TEST(MetricsTest, ScrapesRefreshFirst) {
  Metrics metrics({});
  int scrapes = 0;
  metrics.OnScrape([&](Metrics& m) { m.SetRunningLayers("cpu:0", ++scrapes); });
  EXPECT_EQ(Samples(metrics.Text())[R"(quantd_running_layers{device="cpu:0"})"], 1);
  EXPECT_EQ(Samples(metrics.Text())[R"(quantd_running_layers{device="cpu:0"})"], 2);
}

TEST(MetricsTest, ThreadsLoseNothing) {
  Metrics metrics({.max_tenants = 2});
  metrics.OnScrape([](Metrics& m) { m.SetQueueDepth({{"t0", 1}, {"t1", 2}}); });
  constexpr int kThreads = 4;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&metrics, t] {
      for (int i = 0; i < 500; ++i) {
        metrics.TokensAccumulated(absl::StrCat("t", t), 1);
        metrics.RpcFinished("quantd.v1.Jobs/GetJob", "OK", 0.1);
        if (i % 100 == 0) metrics.Text();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  double tokens = 0;
  for (const auto& [name, value] : Samples(metrics.Text())) {
    if (absl::StartsWith(name, "quantd_accumulated_tokens_total")) tokens += value;
  }
  EXPECT_EQ(tokens, 2000);
}

// What a scraper gets for GET `path` on loopback.
std::string Get(int port, absl::string_view path) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string response;
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request =
        absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    EXPECT_GT(::send(fd, request.data(), request.size(), MSG_NOSIGNAL), 0);
    char buffer[4096];
    for (ssize_t n; (n = ::recv(fd, buffer, sizeof(buffer), 0)) > 0;) response.append(buffer, n);
  }
  ::close(fd);
  return response;
}

TEST(MetricsEndpointTest, ServesOnAFreePort) {
  Metrics metrics({});
  UseEverything(metrics);
  auto endpoint = MetricsEndpoint::Serve(metrics, Ready, "127.0.0.1:0");
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  ASSERT_GT((*endpoint)->port(), 0);
  const std::string response = Get((*endpoint)->port(), "/metrics");
  EXPECT_THAT(response, HasSubstr("200 OK"));
  EXPECT_THAT(response, HasSubstr("text/plain"));
  EXPECT_THAT(response, HasSubstr(R"(quantd_accumulated_tokens_total{tenant="acme"} 300)"));
  EXPECT_THAT(Get((*endpoint)->port(), "/"), Not(HasSubstr("200 OK")));

  const int port = (*endpoint)->port();
  endpoint->reset();
  EXPECT_EQ(Get(port, "/metrics"), "");
}

TEST(MetricsEndpointTest, LivenessAndReadinessAreApart) {
  Metrics metrics({});
  absl::Status ready = absl::UnavailableError("draining");
  const auto endpoint = MetricsEndpoint::Serve(
      metrics, [&ready] { return ready; }, "127.0.0.1:0");
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  const int port = (*endpoint)->port();
  EXPECT_THAT(Get(port, "/healthz"), HasSubstr("200 OK"));
  EXPECT_THAT(Get(port, "/readyz"), HasSubstr("503 Service Unavailable"));
  EXPECT_THAT(Get(port, "/readyz"), HasSubstr("not ready: draining"));
  ready = absl::OkStatus();
  EXPECT_THAT(Get(port, "/readyz"), HasSubstr("200 OK"));
  EXPECT_THAT(Get(port, "/healthz"), HasSubstr("200 OK"));
}

TEST(MetricsEndpointTest, ListensOnNames) {
  Metrics metrics({});
  const auto endpoint = MetricsEndpoint::Serve(metrics, Ready, "localhost:0");
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  EXPECT_THAT(Get((*endpoint)->port(), "/metrics"), HasSubstr("200 OK"));
}

TEST(MetricsEndpointTest, ATakenForeignOrMalformedAddressIsAStatus) {
  Metrics metrics({});
  const auto first = MetricsEndpoint::Serve(metrics, Ready, "127.0.0.1:0");
  ASSERT_TRUE(first.ok()) << first.status();
  const std::pair<std::string, absl::StatusCode> cases[] = {
      {absl::StrCat("127.0.0.1:", (*first)->port()), absl::StatusCode::kUnavailable},
      {"192.0.2.1:9", absl::StatusCode::kUnavailable},  // of no machine (RFC 5737)
      {"nonsense", absl::StatusCode::kInvalidArgument},
  };
  for (const auto& [address, code] : cases) {
    const absl::Status status = MetricsEndpoint::Serve(metrics, Ready, address).status();
    EXPECT_EQ(status.code(), code) << address;
    EXPECT_THAT(std::string(status.message()), HasSubstr(address));
  }
}

TEST(MetricsEndpointTest, ScrapesGoOnAfterRequestsThatAreNone) {
  Metrics metrics({});
  const auto endpoint = MetricsEndpoint::Serve(metrics, Ready, "127.0.0.1:0");
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  for (const std::string& path : {std::string("/nothing"), std::string("/../etc/passwd"),
                                  std::string("no path"), "/" + std::string(100'000, 'x')}) {
    EXPECT_THAT(Get((*endpoint)->port(), path), Not(HasSubstr("200 OK")));
  }
  EXPECT_THAT(Get((*endpoint)->port(), "/metrics"), HasSubstr("200 OK"));
}

}  // namespace
}  // namespace quantd::server
