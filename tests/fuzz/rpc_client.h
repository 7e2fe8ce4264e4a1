#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "quantd/v1/calibration.grpc.pb.h"
#include "quantd/v1/jobs.grpc.pb.h"
#include "quantd/v1/quantize.grpc.pb.h"
#include "quantd/v1/results.grpc.pb.h"
#include "quantd/v1/server.grpc.pb.h"
#include "quantd/v1/weights.grpc.pb.h"
#include "tests/fuzz/byte_feed.h"
#include "tests/fuzz/rpc_server.h"

namespace quantd::fuzz {

// One tenant's calls, made of a fuzzer's bytes: names from small pools, so that calls meet; values
// mostly right, so that they get far. Remembers what the server has acknowledged and ends the
// process where an answer contradicts it, or where a call fails by the server's fault.
class RpcClient {
 public:
  // `stranger`: another tenant, whose names this one tries.
  RpcClient(std::string tenant, std::string stranger, RpcServer& server);

  // Makes one call, or one stream, to its end.
  void Call(int which, ByteFeed& feed);
  // After the server restarted.
  void Reconnect();
  // Ends a sequence: what was acknowledged is there. Deletes all that the tenant has.
  void CheckAndForgetEverything();

 private:
  // What is known of one activation stream, by what was acknowledged.
  using StreamKey = std::pair<std::string, std::string>;  // statistic, stream

  void CreateJob(ByteFeed& feed);
  void JobCalls(ByteFeed& feed);
  void PlanJob(ByteFeed& feed);
  void WatchJob(ByteFeed& feed);
  void Upload(ByteFeed& feed);
  void UploadStatus(ByteFeed& feed);
  void Stream(ByteFeed& feed);
  void Statistic(ByteFeed& feed);
  void Merge(ByteFeed& feed);
  void Seal(ByteFeed& feed);
  void Export(ByteFeed& feed);
  void Import(ByteFeed& feed);
  void Lists(ByteFeed& feed);
  void Artifacts(ByteFeed& feed);
  void Report(ByteFeed& feed);
  void QuantizeTensor(ByteFeed& feed);
  void AnyBytes(ByteFeed& feed);

  std::string Tenant(ByteFeed& feed);
  std::string Job(ByteFeed& feed);
  std::string Layer(ByteFeed& feed);
  std::string StatisticName(ByteFeed& feed);
  std::unique_ptr<grpc::ClientContext> Context() const;
  // `named`: what the call is about. A stranger's is PERMISSION_DENIED.
  void Check(const grpc::Status& status, const std::string& named, const char* call) const;
  void CheckStatistic(const v1::Statistic& statistic);
  void ReadWhole(const std::string& artifact);

  const std::string tenant_;
  const std::string stranger_;
  RpcServer& server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Jobs::Stub> jobs_;
  std::unique_ptr<v1::Weights::Stub> weights_;
  std::unique_ptr<v1::Calibration::Stub> calibration_;
  std::unique_ptr<v1::Results::Stub> results_;
  std::unique_ptr<v1::Quantize::Stub> quantize_;
  std::unique_ptr<v1::Server::Stub> info_;

  std::map<std::string, int64_t> committed_;      // layer -> bytes that were said to be durable
  std::map<StreamKey, int64_t> durable_;          // -> seq that was said to be durable
  std::map<std::string, std::string> artifacts_;  // name -> SHA-256 of the bytes read
};

}  // namespace quantd::fuzz
