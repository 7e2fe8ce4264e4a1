#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "server/config/config.h"
#include "server/ingest/statistics.h"
#include "server/ingest/strand.h"
#include "server/ingest/weight_uploads.h"
#include "server/jobs/job_engine.h"
#include "server/log/audit_log.h"
#include "server/metrics/metrics.h"
#include "server/service/access.h"
#include "server/service/call.h"
#include "tests/fuzz/scratch_folder.h"

namespace quantd::fuzz {

// All services in this process, wired as main.cc does, behind a Unix socket and with real stores in
// a scratch folder. A caller is the tenant whose bearer token is its name.
class RpcServer {
 public:
  RpcServer();
  ~RpcServer();
  // Ends the services as a restart does; what was stored is found again.
  void Restart();
  std::shared_ptr<grpc::Channel> NewChannel();

 private:
  void Start();
  void Stop();

  ScratchFolder folder_;
  const std::string address_ = "unix:" + folder_.File("socket");
  std::unique_ptr<server::Access> access_;
  std::unique_ptr<server::AuditLog> audit_;
  std::unique_ptr<server::Metrics> metrics_;
  std::unique_ptr<compute::Backend> backend_;
  server::LimitsConfig limits_;
  std::unique_ptr<server::JobStore> jobs_;
  std::unique_ptr<server::BlobStore> blobs_;
  server::ByteBudget inflight_{1 << 20};
  server::ByteBudget imports_{1 << 20};
  std::unique_ptr<server::Executor> executor_;
  std::unique_ptr<server::IdleStreams> idle_;
  std::unique_ptr<server::JobEngine> engine_;
  std::unique_ptr<server::Statistics> statistics_;
  std::unique_ptr<server::WeightUploads> uploads_;
  std::unique_ptr<server::CallEnvironment> environment_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace quantd::fuzz
