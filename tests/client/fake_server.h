#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "quantd/v1/calibration.grpc.pb.h"
#include "quantd/v1/jobs.grpc.pb.h"
#include "quantd/v1/results.grpc.pb.h"
#include "quantd/v1/server.grpc.pb.h"
#include "quantd/v1/weights.grpc.pb.h"

namespace quantd::client {

// What the fake server holds and does. Faults are scripts: each entry is taken by one stream, in
// order; without entries nothing goes wrong. Guarded by `mutex`; tests may read it when no call
// runs.
struct FakeState {
  std::mutex mutex;
  v1::ServerInfo info;
  std::string expected_authorization;  // "Bearer ..."; empty: not checked

  // Weights. An entry breaks the stream with UNAVAILABLE after so many chunks.
  std::string uploaded;
  int64_t upload_size = 0;
  bool upload_complete = false;
  std::deque<int> upload_faults;
  std::vector<int64_t> upload_first_offsets;  // of each stream that sent a chunk
  grpc::Status upload_refusal;                // of every header

  // Activations: durable bytes by seq. An entry breaks the stream after so many chunks.
  std::map<int64_t, std::string> durable;
  std::string paired;  // as received
  int64_t credit_bytes = 1 << 20;
  int64_t chunks_per_ack = 1;
  bool durable_on_ack = true;  // else only on flush and at the end
  std::deque<int> activation_faults;
  std::deque<grpc::Status> activation_refusals;     // of a header, one each
  std::vector<std::vector<int64_t>> received_seqs;  // a stream each
  int64_t largest_unacknowledged = 0;               // bytes
  int flushes = 0;
  bool sealed = false;

  // Second moments.
  std::string imported;
  v1::StatisticHeader imported_header;
  int import_faults_after_commit = 0;  // so many answers get lost
  std::deque<grpc::Status> merge_results;
  // What ExportStatistic does to `imported`: one entry a call.
  enum class ExportFault { kNone, kBreaks, kWrongCrc, kWrongDigest, kCutShort, kHostileHeader };
  std::deque<ExportFault> export_faults;

  // Jobs.
  v1::CreateJobRequest created;
  int create_calls = 0;
  std::deque<grpc::Status> create_refusals;
  std::vector<v1::WatchJobResponse> updates;
  std::deque<int> watch_faults;  // ends the watch after so many updates
  bool cancelled = false;
  std::deque<grpc::Status> delete_results;

  // Results.
  std::map<std::string, std::string> artifacts;
  std::deque<int> read_faults;  // breaks after so many messages
  bool corrupt_chunk = false;   // of every read
  bool corrupt_digest = false;
  int64_t read_chunk_bytes = 100;
};

// A server on a real socket that behaves as FakeState says.
class FakeServer {
 public:
  explicit FakeServer(std::shared_ptr<FakeState> state, int port = 0);
  ~FakeServer();
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  int port() const { return port_; }

 private:
  std::vector<std::unique_ptr<grpc::Service>> services_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// A status with google.rpc details.
grpc::Status StatusWithDetails(grpc::StatusCode code, const std::string& message,
                               const std::vector<const google::protobuf::Message*>& details);

}  // namespace quantd::client
