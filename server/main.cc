// quantd: reads the configuration, wires the parts together, serves until SIGTERM or SIGINT.

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <semaphore.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "compute/backend/registry.h"
#include "grpc/health/v1/health.pb.h"
#include "server/config/address.h"
#include "server/config/config.h"
#include "server/fsck/fsck_command.h"
#include "server/ingest/statistics.h"
#include "server/ingest/weight_uploads.h"
#include "server/jobs/job_engine.h"
#include "server/log/audit_log.h"
#include "server/log/log.h"
#include "server/metrics/metrics.h"
#include "server/retention/retention.h"
#include "server/service/access.h"
#include "server/service/calibration_service.h"
#include "server/service/jobs_service.h"
#include "server/service/messages.h"
#include "server/service/quantize_service.h"
#include "server/service/readiness.h"
#include "server/service/results_service.h"
#include "server/service/server_service.h"
#include "server/service/weights_service.h"
#include "server/store/data_directory.h"
#include "server/store/failpoint.h"
#include "server/store/local_blob_store.h"
#include "server/store/quota_blob_store.h"
#include "server/store/sqlite_job_store.h"
#include "server/store/storage_limits.h"
#include "server/store/sync_failures.h"

namespace quantd::server {
namespace {

struct Flags {
  std::string config_file;
  std::string listen;
  std::string metrics_listen;
  std::string data_dir;
  std::string log_level;
  std::string devices;
  int cpu_threads = 0;
  bool allow_insecure_listen = false;
  bool shared_memory = false;
  bool cuda_ipc = false;
  bool list_failpoints = false;
};

absl::StatusOr<ServerConfig> Configure(const Flags& flags) {
  ServerConfig config;
  if (!flags.config_file.empty()) {
    absl::StatusOr<ServerConfig> loaded = LoadConfig(flags.config_file);
    if (!loaded.ok()) return loaded.status();
    config = std::move(*loaded);
  }
  const auto override_with = [](std::string& field, const std::string& flag) {
    if (!flag.empty()) field = flag;
  };
  override_with(config.listen, flags.listen);
  override_with(config.metrics_listen, flags.metrics_listen);
  override_with(config.data_dir, flags.data_dir);
  override_with(config.log_level, flags.log_level);
  override_with(config.devices, flags.devices);
  if (flags.cpu_threads > 0) config.cpu_threads = flags.cpu_threads;
  config.allow_insecure_listen |= flags.allow_insecure_listen;
  config.shared_memory |= flags.shared_memory;
  config.cuda_ipc |= flags.cuda_ipc;
  if (absl::Status status = Validate(config); !status.ok()) return status;
  return config;
}

// A listener that has run out of descriptors never recovers (CVE-2023-4785).
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

std::unique_ptr<Metrics> MakeMetrics(const ServerConfig& config,
                                     const std::vector<compute::Backend*>& backends) {
  Metrics::Options options;
  options.version = QUANTD_VERSION;
  std::set<std::string> kinds;
  for (const compute::Backend* backend : backends) {
    const std::string name = backend->Describe().name;
    kinds.insert(name.substr(0, name.find(':')));
  }
  options.backends.clear();
  for (const std::string& kind : kinds) {
    absl::StrAppend(&options.backends, options.backends.empty() ? "" : ",", kind);
  }
  for (const TenantConfig& tenant : config.tenants) options.tenants.push_back(tenant.name);
  if (config.tenants.empty()) options.tenants.emplace_back("default");
  return std::make_unique<Metrics>(std::move(options));
}

std::map<std::string, TenantShare> SharesOf(const ServerConfig& config) {
  std::map<std::string, TenantShare> shares;
  for (const TenantConfig& tenant : config.tenants) {
    shares[tenant.name] = {.weight = tenant.weight,
                           .quota = {.max_running = tenant.max_running_layers,
                                     .max_seconds_per_day = tenant.max_device_seconds_per_day}};
  }
  return shares;
}

JobEngine::Options EngineOptions(const ServerConfig& config, const compute::Backend& backend) {
  JobEngine::Options options;
  options.cpu_slots = config.cpu_slots;
  options.cuda_slots = config.cuda_slots;
  options.max_jobs_per_tenant = config.limits.max_jobs_per_tenant;
  options.limits.max_dimension = config.limits.max_dimension;
  options.limits.max_weight_bytes = config.limits.max_weight_bytes;
  options.limits.max_layers_per_job = config.limits.max_layers_per_job;
  options.limits.max_layer_bytes = config.limits.max_layer_bytes > 0
                                       ? config.limits.max_layer_bytes
                                       : backend.Describe().memory_bytes / 4 * 3;
  options.tenants = SharesOf(config);
  options.priority_ageing = absl::Seconds(config.priority_ageing_seconds);
  return options;
}

int64_t PhysicalMemory() { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE); }

StatisticsOptions MakeStatisticsOptions(const ServerConfig& config) {
  StatisticsOptions options;
  options.commit.bytes = config.durability.commit_bytes;
  options.commit.interval = absl::Milliseconds(config.durability.commit_interval_ms);
  options.max_statistics_per_tenant = config.limits.max_statistics_per_tenant;
  options.max_streams_per_tenant = config.limits.max_streams_per_tenant;
  options.max_moment_bytes = config.limits.max_weight_bytes;
  options.max_dimension = config.limits.max_dimension;
  options.moment_cache_bytes = config.limits.moment_cache_bytes > 0
                                   ? config.limits.moment_cache_bytes
                                   : PhysicalMemory() / 8;
  options.open_sum_bytes = config.limits.open_sum_bytes;
  return options;
}

JobEvents EventsFor(Metrics& metrics) {
  const auto job_name = [](const WorkItem& item) {
    return absl::StrCat("tenants/", item.tenant, "/jobs/", item.job_id);
  };
  JobEvents events;
  events.started = [&metrics, job_name](const WorkItem& item, absl::Duration wait) {
    metrics.QueueWait(item.priority, absl::ToDoubleSeconds(wait));
    Log(LogLevel::kDebug, "layers_started", {{"job", job_name(item)}, {"group", item.group}});
  };
  events.succeeded = [&metrics, job_name](const WorkItem& item,
                                          const compute::ErrorReport& report) {
    double seconds = 0.0;
    for (const auto& [stage, spent] : report.seconds) {
      if (stage == "total") {
        seconds = spent;
      } else {
        metrics.StageFinished(stage, spent);
      }
    }
    const auto recipe = compute::RecipeFromJson(report.recipe_json);
    if (recipe.ok()) {
      metrics.LayerFinished(item.tenant, compute::NameOf(recipe->method),
                            compute::NameOf(recipe->format), "succeeded", seconds);
    }
    Log(LogLevel::kInfo, "layer_succeeded",
        {{"job", job_name(item)},
         {"layer", report.layer},
         {"outcome", std::string(compute::NameOf(report.outcome))},
         {"seconds", seconds}});
  };
  events.failed = [&metrics, job_name](const WorkItem& item, const absl::Status& status) {
    const bool is_expired = absl::IsDeadlineExceeded(status);
    const bool is_failure = !absl::IsCancelled(status) && !is_expired;
    metrics.LayerFinished(item.tenant, "", "",
                          is_failure   ? "failed"
                          : is_expired ? "expired"
                                       : "cancelled",
                          0.0);
    Log(is_failure ? LogLevel::kError : LogLevel::kInfo, "layers_failed",
        {{"job", job_name(item)}, {"group", item.group}, {"error", status.ToString()}});
  };
  // ./dev simulate --load reads these lines.
  events.ended = [&metrics, job_name](const WorkItem& item, const WorkTimes& times) {
    metrics.DeviceSeconds(item.tenant, times.device_seconds);
    Log(LogLevel::kInfo, "work_ended",
        {{"job", job_name(item)},
         {"group", item.group},
         {"priority", item.priority},
         {"ready", absl::ToUnixMicros(times.ready) / 1e6},
         {"started", absl::ToUnixMicros(times.started) / 1e6},
         {"estimate", item.estimated_seconds},
         {"seconds", times.device_seconds},
         {"bytes", item.peak_bytes}});
  };
  events.expired = [&metrics](const std::string& tenant, const std::string& job) {
    metrics.JobExpired();
    Log(LogLevel::kInfo, "job_expired", {{"job", absl::StrCat("tenants/", tenant, "/jobs/", job)}});
  };
  return events;
}

StorageLimits::ByTenant StorageLimitsOf(const ServerConfig& config) {
  StorageLimits::ByTenant own;
  for (const TenantConfig& tenant : config.tenants) {
    if (tenant.max_stored_bytes > 0) own[tenant.name] = tenant.max_stored_bytes;
  }
  return own;
}

RetentionPolicy MakeRetentionPolicy(const RetentionConfig& config) {
  const auto after = [](int64_t seconds) {
    return seconds > 0 ? absl::Seconds(seconds) : absl::InfiniteDuration();
  };
  return {.ended_jobs = after(config.ended_jobs_seconds),
          .unused_statistics = after(config.unused_statistics_seconds),
          .abandoned_uploads = after(config.abandoned_uploads_seconds),
          .abandoned_statistics = after(config.abandoned_statistics_seconds)};
}

RetentionActions MakeRetentionActions(JobEngine& engine, Statistics& statistics,
                                      WeightUploads& uploads, Metrics& metrics) {
  return {
      .delete_job = [&engine](const std::string& tenant,
                              const std::string& job) { return engine.Delete(tenant, job); },
      .delete_statistic =
          [&statistics](const std::string& tenant, const std::string& statistic) {
            return statistics.Delete(tenant, statistic);
          },
      .discard_upload =
          [&uploads](const std::string& tenant, const std::string& job, const std::string& layer) {
            return uploads.Discard({tenant, job, layer});
          },
      .collected =
          [&metrics](absl::string_view kind, const std::string& tenant, const std::string& name) {
            metrics.Collected(kind);
            Log(LogLevel::kInfo, "collected",
                {{"kind", std::string(kind)}, {"tenant", tenant}, {"name", name}});
          },
  };
}

void RefreshGauges(Metrics& metrics, const ServerConfig& config, const JobEngine& engine,
                   const std::vector<compute::Backend*>& backends, const Statistics& statistics,
                   BlobStore& blobs) {
  metrics.SetSyncFailures(SyncFailures());
  for (const auto& [device, sums] : statistics.OpenSumsOfDevices()) {
    metrics.SetOpenSums(device, sums.bytes, sums.waiting, sums.page_outs);
  }
  std::error_code unknown;
  if (const auto disk = std::filesystem::space(config.data_dir, unknown); !unknown) {
    metrics.SetDisk(static_cast<int64_t>(disk.available), static_cast<int64_t>(disk.capacity));
  }
  for (const compute::Backend* backend : backends) {
    const compute::DeviceInfo info = backend->Describe();
    metrics.SetDeviceMemory(info.name, info.used_bytes, info.memory_bytes);
    const compute::DeviceActivity activity = backend->Activity();
    metrics.SetDeviceActivity(info.name, {.utilisation = activity.utilisation,
                                          .power_watts = activity.power_watts,
                                          .temperature_celsius = activity.temperature_celsius});
  }
  if (const auto stored = blobs.StoredBytes(); stored.ok()) metrics.SetStoredBytes(*stored);

  std::map<std::string, int> waiting;
  std::map<QuotaKind, int> held;
  for (const auto& [tenant, load] : engine.Loads()) {
    waiting[tenant] = load.waiting;
    if (load.quota_wait.has_value()) held[load.quota_wait->kind] += load.waiting;
  }
  metrics.SetQueueDepth(waiting);
  for (const QuotaKind kind : {QuotaKind::kRunning, QuotaKind::kSecondsPerDay}) {
    metrics.SetQuotaWaiting(NameOf(kind), held[kind]);
  }
  const Scheduler::Preemptions preemptions = engine.Preemptions();
  metrics.SetPreemptions(preemptions.by_priority, preemptions.by_share);
  std::map<std::string, int> running;
  const std::vector<int> busy = engine.RunningBySlot();
  for (size_t slot = 0; slot < busy.size(); ++slot) {
    running[engine.slots()[slot].device] += busy[slot];
  }
  for (const auto& [device, count] : running) metrics.SetRunningLayers(device, count);
}

void LogDevices(const ServerConfig& config, const std::vector<compute::Backend*>& backends) {
  const std::string why = config.devices == "auto" ? compute::WhyNoCuda() : "";
  if (!why.empty()) Log(LogLevel::kWarning, "no_cuda_device", {{"why", why}, {"device", "cpu"}});
  for (const compute::Backend* backend : backends) {
    const compute::DeviceInfo info = backend->Describe();
    Log(LogLevel::kInfo, "device",
        {{"name", info.name}, {"description", info.description}, {"memory", info.memory_bytes}});
    const std::string unknown = backend->Activity().unknown;
    if (!unknown.empty()) {
      Log(LogLevel::kWarning, "device_activity_unknown", {{"device", info.name}, {"why", unknown}});
    }
  }
}

// What a crash left between a blob's rename and its record's commit.
absl::Status DeleteOrphans(JobStore& jobs, BlobStore& blobs) {
  absl::StatusOr<std::vector<std::string>> referenced = jobs.ReferencedBlobs();
  if (!referenced.ok()) return referenced.status();
  const std::set<std::string> keep(referenced->begin(), referenced->end());
  absl::StatusOr<std::vector<std::string>> present = blobs.List();
  if (!present.ok()) return present.status();
  int64_t deleted = 0;
  for (const std::string& name : *present) {
    if (keep.contains(name)) continue;
    if (absl::Status status = blobs.Delete(name); !status.ok()) return status;
    ++deleted;
  }
  if (deleted > 0) Log(LogLevel::kInfo, "orphans_deleted", {{"blobs", deleted}});
  return absl::OkStatus();
}

void SetServerOptions(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessageBytes));
  // A few bytes on the wire must not become many in memory.
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1000);
  // Two servers on one port would share its connections: refuse instead.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Finds out about clients that went without a word, so that their streams are free again.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // A client that pings more often than that loses its connection.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 3);
  // Of a call's headers, which hold a token at most; the connection of who never says what it wants
  // ends, and so does one that carries no call.
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8192);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 15 * 60'000);
}

// Posted by every SIGTERM, SIGINT and SIGHUP; which it was stands beside it. Atomic, since any
// thread may take a signal.
sem_t signal_came;
std::atomic<bool> stop_requested = false;
std::atomic<bool> reload_requested = false;
static_assert(std::atomic<bool>::is_always_lock_free);

template <std::atomic<bool>* kRequested>
void TakeSignal(int /*signal*/) {
  const int interrupted = errno;
  *kRequested = true;
  sem_post(&signal_came);
  errno = interrupted;
}

// Handlers rather than sigwait: libraries start threads before main, in which the signals cannot
// be blocked, and which would end the process when one of them is chosen to take the signal.
void HandleSignals() {
  sem_init(&signal_came, /*pshared=*/0, 0);
  struct sigaction action {};
  action.sa_flags = SA_RESTART;
  action.sa_handler = TakeSignal<&stop_requested>;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  action.sa_handler = TakeSignal<&reload_requested>;
  sigaction(SIGHUP, &action, nullptr);
}

// Returns at the first SIGTERM or SIGINT; every later one changes nothing. `reload` runs after each
// SIGHUP, once for several that came while it ran.
void WaitForStopSignal(const std::function<void()>& reload) {
  while (!stop_requested) {
    while (sem_wait(&signal_came) != 0) {
    }
    if (!stop_requested && reload_requested.exchange(false)) reload();
  }
}

// Takes up what of the configuration can change while the server runs. A mistake changes nothing.
void Reload(const Flags& flags, const ServerConfig& running, Access& access, AuditLog& audit,
            JobEngine& engine, StorageLimits& storage) {
  absl::StatusOr<ServerConfig> next = Configure(flags);
  absl::Status status = next.status();
  if (status.ok()) status = audit.Reopen();
  if (status.ok()) status = access.Reload(*next);
  if (!status.ok()) {
    Log(LogLevel::kError, "reload_refused", {{"error", std::string(status.message())}});
    return;
  }
  engine.SetTenants(SharesOf(*next));
  storage.Replace(StorageLimitsOf(*next));
  const auto tenants = static_cast<int64_t>(next->tenants.size());
  ServerConfig rest = *std::move(next);
  rest.tenants = running.tenants;
  rest.jwt = running.jwt;
  rest.tls_certificate_file = running.tls_certificate_file;
  rest.tls_private_key_file = running.tls_private_key_file;
  rest.tls_client_ca_file = running.tls_client_ca_file;
  const bool restart_needed = !(rest == running);
  Log(restart_needed ? LogLevel::kWarning : LogLevel::kInfo, "reloaded",
      {{"tenants", tenants}, {"restart_needed", restart_needed}});
}

absl::Status Serve(const ServerConfig& config, const Flags& flags) {
  // It would write a line for each message that does not parse: clients do not write our log.
  google::protobuf::SetLogHandler(nullptr);
  absl::StatusOr<std::unique_ptr<DataDirectory>> directory = DataDirectory::Open(config.data_dir);
  if (!directory.ok()) return directory.status();
  absl::StatusOr<std::unique_ptr<JobStore>> jobs =
      OpenSqliteJobStore((*directory)->database_path());
  if (!jobs.ok()) return jobs.status();
  absl::StatusOr<std::unique_ptr<BlobStore>> local =
      OpenLocalBlobStore((*directory)->blob_directory());
  if (!local.ok()) return local.status();
  StorageLimits storage(config.limits.max_stored_bytes, StorageLimitsOf(config));
  const std::unique_ptr<BlobStore> blobs = WithStorageLimit(
      *std::move(local), [&storage](absl::string_view tenant) { return storage.Of(tenant); });
  if (absl::Status status = DeleteOrphans(**jobs, *blobs); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Access>> access = Access::Create(config);
  if (!access.ok()) return access.status();
  absl::StatusOr<std::unique_ptr<AuditLog>> audit = AuditLog::Open(config.audit_log_file);
  if (!audit.ok()) return audit.status();

  const absl::StatusOr<std::vector<std::unique_ptr<compute::Backend>>> owned_backends =
      compute::OpenBackends({.devices = config.devices, .cpu_threads = config.cpu_threads});
  if (!owned_backends.ok()) return owned_backends.status();
  std::vector<compute::Backend*> backends;
  for (const auto& backend : *owned_backends) backends.push_back(backend.get());
  LogDevices(config, backends);

  const std::unique_ptr<Metrics> metrics = MakeMetrics(config, backends);
  // Before the executor: what runs there last still gives its bytes back.
  const int64_t inflight_bytes = config.limits.max_inflight_bytes > 0
                                     ? config.limits.max_inflight_bytes
                                     : PhysicalMemory() / 8;
  ByteBudget inflight(inflight_bytes);
  ByteBudget imports(inflight_bytes);
  Executor executor(static_cast<int>(std::max(4u, 2 * std::thread::hardware_concurrency())));
  std::unique_ptr<JobEngine> engine;  // set before anything calls it
  Statistics statistics(**jobs, *blobs, backends, executor, MakeStatisticsOptions(config),
                        [&engine](const std::string& tenant, const std::string& statistic) {
                          engine->StatisticSealed(tenant, statistic);
                        });
  engine = std::make_unique<JobEngine>(
      **jobs, *blobs, backends, EngineOptions(config, *backends.front()),
      [&statistics](const std::string& tenant, const std::string& statistic) {
        return statistics.Load(tenant, statistic);
      },
      EventsFor(*metrics));
  WeightUploads uploads(
      **jobs, *blobs, config.limits.max_weight_bytes, config.limits.max_streams_per_tenant,
      [&engine](const LayerKey& key) { engine->WeightCompleted(key.tenant, key.job); });
  Retention retention(**jobs, *blobs, MakeRetentionPolicy(config.retention),
                      MakeRetentionActions(*engine, statistics, uploads, *metrics));
  Readiness readiness(**jobs, *metrics);
  metrics->OnScrape([&](Metrics& m) {
    readiness.Check().IgnoreError();  // the metrics tell
    RefreshGauges(m, config, *engine, backends, statistics, *blobs);
  });

  IdleStreams idle(absl::Seconds(config.limits.idle_stream_seconds));
  const CallEnvironment environment{.authenticator = (*access)->authenticator(),
                                    .metrics = *metrics,
                                    .executor = executor,
                                    .audit = **audit,
                                    .calls = (*access)->calls(),
                                    .idle = idle,
                                    .inflight = inflight,
                                    .imports = imports};
  std::vector<std::unique_ptr<grpc::Service>> services;
  services.push_back(NewJobsService(environment, *engine, **jobs, *blobs));
  services.push_back(NewWeightsService(environment, uploads));
  services.push_back(NewCalibrationService(environment, statistics, **jobs,
                                           {.credit_bytes = config.limits.stream_credit_bytes,
                                            .shared_memory = config.shared_memory,
                                            .cuda_ipc = config.cuda_ipc,
                                            .devices = backends}));
  services.push_back(NewResultsService(environment, **jobs, *blobs));
  services.push_back(
      NewQuantizeService(environment, *backends.front(), config.limits.max_inline_bytes));
  services.push_back(NewServerService(environment, QUANTD_VERSION, backends, config.limits, *engine,
                                      {.access = **access,
                                       .limits = config.limits,
                                       .jobs = **jobs,
                                       .blobs = *blobs,
                                       .statistics = statistics,
                                       .uploads = uploads,
                                       .engine = *engine}));

  absl::StatusOr<std::unique_ptr<MetricsEndpoint>> metrics_endpoint = MetricsEndpoint::Serve(
      *metrics, [&readiness] { return readiness.Check(); }, config.metrics_listen);
  if (!metrics_endpoint.ok()) return metrics_endpoint.status();

  grpc::EnableDefaultHealthCheckService(true);
  // gRPC's health service has no descriptor of its own: named here, ours is linked for reflection.
  grpc::health::v1::HealthCheckRequest::descriptor();
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetServerOptions(builder);
  int port = 0;
  builder.AddListeningPort(config.listen, (*access)->grpc_credentials(), &port);
  for (const auto& service : services) builder.RegisterService(service.get());
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("listen: cannot bind ", config.listen, "; is another server using it?"));
  }
  if (absl::Status status = engine->Start(); !status.ok()) return status;
  readiness.Start(*server->GetHealthCheckService());
  retention.Start(
      absl::Seconds(config.retention.sweep_interval_seconds), [] { return absl::Now(); },
      [](const absl::Status& status) {
        Log(LogLevel::kError, "retention_failed", {{"error", status.ToString()}});
      });

  const auto with_port = [](const std::string& address, int actual) {
    Address parsed = ParseAddress(address).value_or(Address{});
    parsed.port = actual;
    return parsed.ToString();
  };
  Log(LogLevel::kInfo, "listening",
      {{"address", with_port(config.listen, port)},
       {"metrics_address", with_port(config.metrics_listen, (*metrics_endpoint)->port())},
       {"data_dir", config.data_dir},
       {"device", backends.front()->Describe().description},
       {"version", std::string(QUANTD_VERSION)}});

  WaitForStopSignal([&] { Reload(flags, config, **access, **audit, *engine, storage); });
  Log(LogLevel::kInfo, "draining");
  const absl::Time deadline = absl::Now() + absl::Seconds(config.drain_seconds);
  readiness.Drain();
  statistics.Drain();
  uploads.Drain();
  engine->Drain(deadline);
  // Streams that are still open are ended; what they were acknowledged is durable.
  server->Shutdown(absl::ToChronoTime(std::min(deadline, absl::Now() + absl::Seconds(2))));
  Log(LogLevel::kInfo, "stopped");
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app{
      "quantd quantizes the layers of large language models as a gRPC service.\n"
      "Flags override the configuration file; every option of the file is described in\n"
      "proto/quantd/config/v1/server_config.proto."};
  app.set_version_flag("--version", QUANTD_VERSION);
  app.add_option("--config", flags.config_file, "configuration, protobuf text format");
  app.add_option("--listen", flags.listen, "HOST:PORT of the gRPC endpoint [127.0.0.1:7741]");
  app.add_option("--metrics_listen,--metrics-listen", flags.metrics_listen,
                 "HOST:PORT of the Prometheus endpoint [127.0.0.1:7742]");
  app.add_option("--data_dir,--data-dir", flags.data_dir,
                 "directory of the database and the blobs [./data]");
  app.add_option("--log_level,--log-level", flags.log_level,
                 "debug, info, warning or error [info]");
  app.add_option("--devices", flags.devices,
                 "auto, or a list of cuda:N, cuda (all) and cpu [auto: every GPU, else the CPU]");
  app.add_option("--cpu_threads,--cpu-threads", flags.cpu_threads,
                 "threads of the CPU backend [one a core]");
  app.add_flag("--allow_insecure_listen,--allow-insecure-listen", flags.allow_insecure_listen,
               "accept connections without TLS or credentials from other machines");
  app.add_flag("--shared_memory,--shared-memory", flags.shared_memory,
               "let clients on this host hand activations over in POSIX shared memory");
  app.add_flag("--cuda_ipc,--cuda-ipc", flags.cuda_ipc,
               "let clients on this host hand activations over in a GPU's memory (CUDA IPC)");
  app.add_flag("--list_failpoints", flags.list_failpoints)->group("");  // of test builds
  FsckOptions fsck;
  CLI::App* const fsck_command = AddFsckCommand(app, fsck);
  CLI11_PARSE(app, argc, argv);
  if (flags.list_failpoints) {
    for (const std::string& name : FailpointNames()) std::cout << name << "\n";
    return kHasFailpoints ? 0 : 1;
  }
  if (const char* rules = std::getenv("QUANTD_FAILPOINTS"); kHasFailpoints && rules != nullptr) {
    if (absl::Status status = ArmFailpoints(rules); !status.ok()) {
      std::cerr << "quantd: " << status.message() << "\n";
      return 2;
    }
  }

  if (fsck_command->parsed()) return RunFsck(fsck);

  const absl::StatusOr<ServerConfig> config = Configure(flags);
  if (!config.ok()) {
    std::cerr << "quantd: " << config.status().message() << "\n";
    return 2;
  }
  if (absl::Status status = ConfigureLog(config->log_level); !status.ok()) {
    std::cerr << "quantd: " << status.message() << "\n";
    return 2;
  }
  HandleSignals();
  std::signal(SIGPIPE, SIG_IGN);
  RaiseDescriptorLimit();

  const absl::Status status = Serve(*config, flags);
  if (!status.ok()) {
    Log(LogLevel::kError, "failed", {{"error", status.ToString()}});
    std::cerr << "quantd: " << status.message() << "\n";
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace quantd::server

int main(int argc, char** argv) { return quantd::server::Main(argc, argv); }
