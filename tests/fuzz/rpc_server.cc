#include "tests/fuzz/rpc_server.h"

#include <chrono>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/time/clock.h"
#include "compute/backend/cpu/cpu_backend.h"
#include "compute/tensor/checksum.h"
#include "server/log/log.h"
#include "server/service/calibration_service.h"
#include "server/service/jobs_service.h"
#include "server/service/messages.h"
#include "server/service/quantize_service.h"
#include "server/service/results_service.h"
#include "server/service/server_service.h"
#include "server/service/weights_service.h"
#include "server/store/local_blob_store.h"
#include "server/store/sqlite_job_store.h"
#include "tests/fuzz/check.h"

namespace quantd::fuzz {

using namespace quantd::server;  // NOLINT: this file is made of it

RpcServer::RpcServer() {
  FUZZ_CHECK(ConfigureLog("error").ok());
  ServerConfig config;
  for (const std::string tenant : {"acme", "beta"}) {
    const std::string hash = absl::BytesToHexString(compute::ToBytes(compute::Sha256::Of(tenant)));
    config.tenants.push_back(
        {.name = tenant, .tokens = {{"token", hash, {.submit = true, .read = true}}}});
  }
  access_ = Access::Create(config).value();
  audit_ = AuditLog::Open(folder_.File("audit")).value();
  metrics_ = std::make_unique<Metrics>(Metrics::Options{});
  backend_ = compute::NewCpuBackend(1);
  limits_.max_jobs_per_tenant = 4;
  limits_.max_statistics_per_tenant = 4;
  limits_.max_streams_per_tenant = 2;
  limits_.max_dimension = 1 << 10;
  limits_.max_weight_bytes = 1 << 20;
  limits_.stream_credit_bytes = 512;
  limits_.max_inline_bytes = 1 << 12;
  Start();
}

RpcServer::~RpcServer() { Stop(); }

void RpcServer::Start() {
  jobs_ = OpenSqliteJobStore(folder_.File("db")).value();
  blobs_ = OpenLocalBlobStore(folder_.File("blobs")).value();
  executor_ = std::make_unique<Executor>(4);
  StatisticsOptions statistics;
  statistics.commit.interval = absl::Milliseconds(2);
  statistics.commit.bytes = 256;
  statistics.max_statistics_per_tenant = limits_.max_statistics_per_tenant;
  statistics.max_streams_per_tenant = limits_.max_streams_per_tenant;
  statistics.max_moment_bytes = limits_.max_weight_bytes;
  statistics.max_dimension = limits_.max_dimension;
  statistics.moment_cache_bytes = 1 << 20;
  statistics_ = std::make_unique<Statistics>(
      *jobs_, *blobs_, std::vector<compute::Backend*>{backend_.get()}, *executor_, statistics,
      [this](const std::string& tenant, const std::string& statistic) {
        engine_->StatisticSealed(tenant, statistic);
      });
  JobEngine::Options options;
  options.max_jobs_per_tenant = limits_.max_jobs_per_tenant;
  options.limits.max_dimension = limits_.max_dimension;
  options.limits.max_weight_bytes = limits_.max_weight_bytes;
  options.limits.max_layers_per_job = 4;
  options.limits.max_layer_bytes = 64 << 20;
  JobEvents events = {.started = [](const WorkItem&, absl::Duration) {},
                      .succeeded = [](const WorkItem&, const compute::ErrorReport&) {},
                      .failed = [](const WorkItem&, const absl::Status&) {},
                      .ended = [](const WorkItem&, const WorkTimes&) {},
                      .expired = [](const std::string&, const std::string&) {}};
  engine_ = std::make_unique<JobEngine>(
      *jobs_, *blobs_, std::vector<compute::Backend*>{backend_.get()}, options,
      [this](const std::string& tenant, const std::string& statistic) {
        return statistics_->Load(tenant, statistic);
      },
      events);
  uploads_ = std::make_unique<WeightUploads>(
      *jobs_, *blobs_, limits_.max_weight_bytes, limits_.max_streams_per_tenant,
      [this](const LayerKey& key) { engine_->WeightCompleted(key.tenant, key.job); });
  idle_ = std::make_unique<IdleStreams>(absl::Seconds(10));
  environment_ = std::make_unique<CallEnvironment>(
      CallEnvironment{access_->authenticator(), *metrics_, *executor_, *audit_, access_->calls(),
                      *idle_, inflight_, imports_});

  services_.push_back(NewJobsService(*environment_, *engine_, *jobs_, *blobs_));
  services_.push_back(NewWeightsService(*environment_, *uploads_));
  services_.push_back(
      NewCalibrationService(*environment_, *statistics_, *jobs_,
                            {.credit_bytes = limits_.stream_credit_bytes, .shared_memory = false}));
  services_.push_back(NewResultsService(*environment_, *jobs_, *blobs_));
  services_.push_back(NewQuantizeService(*environment_, *backend_, limits_.max_inline_bytes));
  services_.push_back(NewServerService(*environment_, "0.0.0", {backend_.get()}, limits_, *engine_,
                                       {.access = *access_,
                                        .limits = limits_,
                                        .jobs = *jobs_,
                                        .blobs = *blobs_,
                                        .statistics = *statistics_,
                                        .uploads = *uploads_,
                                        .engine = *engine_}));
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessageBytes));
  // Not gRPC's in-process channel: its writes wait for a reader even where the call has ended.
  builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
  for (const auto& service : services_) builder.RegisterService(service.get());
  server_ = builder.BuildAndStart();
  FUZZ_CHECK(server_ != nullptr);
  FUZZ_CHECK(engine_->Start().ok());
}

void RpcServer::Stop() {
  statistics_->Drain();
  uploads_->Drain();
  engine_->Drain(absl::Now());
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  server_.reset();
  services_.clear();
  uploads_.reset();
  statistics_.reset();
  engine_.reset();
  idle_.reset();
  executor_.reset();
  environment_.reset();
  blobs_.reset();
  jobs_.reset();
}

void RpcServer::Restart() {
  Stop();
  Start();
}

std::shared_ptr<grpc::Channel> RpcServer::NewChannel() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  return grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace quantd::fuzz
