#pragma once

// Internal to client/cpp: brings gRPC and the stubs.

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/backoff.h"
#include "client/cpp/client.h"
#include "client/cpp/resources.h"
#include "quantd/v1/calibration.grpc.pb.h"
#include "quantd/v1/jobs.grpc.pb.h"
#include "quantd/v1/results.grpc.pb.h"
#include "quantd/v1/server.grpc.pb.h"
#include "quantd/v1/weights.grpc.pb.h"

namespace quantd::client {

// Channel and stubs, and the calls that are in flight on them. Thread-safe.
class Connection {
 public:
  static absl::StatusOr<std::shared_ptr<Connection>> Create(const ConnectOptions& options);

  const ConnectOptions& options() const { return options_; }
  const ServerInfo& server() const { return server_; }
  void SetServer(ServerInfo server) { server_ = std::move(server); }  // before it is shared
  // Data of one message: what the options, the server's chunks and its credit all allow.
  int64_t ChunkBytes() const;

  void Interrupt();
  bool interrupted() const;
  // Waits before the next attempt of something that failed with `failure`. Returns `failure` where
  // trying again is pointless: not transient, budget spent, or interrupted.
  absl::Status WaitToRetry(const absl::Status& failure, Backoff& backoff);
  absl::Status ToStatus(const grpc::Status& status) const;

  const std::unique_ptr<v1::Server::Stub> server_stub;
  const std::unique_ptr<v1::Jobs::Stub> jobs;
  const std::unique_ptr<v1::Weights::Stub> weights;
  const std::unique_ptr<v1::Calibration::Stub> calibration;
  const std::unique_ptr<v1::Results::Stub> results;

 private:
  friend class Call;
  Connection(ConnectOptions options, const std::shared_ptr<grpc::Channel>& channel);

  const ConnectOptions options_;
  ServerInfo server_;
  mutable std::mutex mutex_;
  std::condition_variable interrupt_;
  bool interrupted_ = false;
  std::set<grpc::ClientContext*> running_;
};

// Whether a limit is reached that the server expects to be free again, and says when (RetryInfo).
bool IsAtLimit(const absl::Status& status);
// Whether a call may succeed if it is made again: the server is away, starting or draining, or the
// call is at a limit.
bool IsTransient(const absl::Status& status);

// The context of one call: credential, deadline, and being found by Interrupt.
class Call {
 public:
  explicit Call(Connection& connection, absl::Duration timeout = absl::InfiniteDuration());
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  grpc::ClientContext* context() { return &context_; }

 private:
  Connection& connection_;
  grpc::ClientContext context_;
};

// One attempt of a unary call.
template <typename Stub, typename Request, typename Response>
absl::Status CallOnce(Connection& connection, Stub& stub,
                      grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                      const Request& request, Response* response, absl::Duration timeout) {
  Call call(connection, timeout);
  return connection.ToStatus((stub.*method)(call.context(), request, response));
}

// A unary call that is safe to repeat.
template <typename Stub, typename Request, typename Response>
absl::Status CallUnary(Connection& connection, Stub& stub,
                       grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                    Response*),
                       const Request& request, Response* response) {
  Backoff backoff(connection.options().retry_for);
  while (true) {
    const absl::Status status =
        CallOnce(connection, stub, method, request, response, absl::Seconds(120));
    if (status.ok()) return status;
    if (absl::Status stop = connection.WaitToRetry(status, backoff); !stop.ok()) return stop;
  }
}

}  // namespace quantd::client
