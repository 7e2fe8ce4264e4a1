#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "server/auth/authenticator.h"
#include "server/ingest/byte_budget.h"
#include "server/ingest/strand.h"
#include "server/log/audit_log.h"
#include "server/metrics/metrics.h"
#include "server/service/grpc_status.h"
#include "server/service/idle_streams.h"
#include "server/service/requested_resource.h"
#include "server/service/tenant_calls.h"

// What every call does, whatever it is about: say who calls and whether they may, leave gRPC's
// threads, count, write the audit log, convert the outcome.
namespace quantd::server {

// Shared by all services; outlives them.
struct CallEnvironment {
  const Authenticator& authenticator;
  Metrics& metrics;
  Executor& executor;
  AuditLog& audit;
  TenantCalls& calls;
  IdleStreams& idle;
  ByteBudget& inflight;  // messages that are read and not worked off
  ByteBudget& imports;   // moments that are not whole yet
};

// UNAVAILABLE: the client has sent nothing for too long, and may go on in a new stream.
absl::Status IdleStatus(const IdleStreams& idle);

// One call's bookkeeping. Finish exactly once.
class Call {
 public:
  Call(const CallEnvironment& environment, grpc::CallbackServerContext* context,
       absl::string_view method);
  // The caller's tenant, or why the call is refused: UNAUTHENTICATED, PERMISSION_DENIED for a role
  // that the credential has not (permissions.h), RESOURCE_EXHAUSTED at the tenant's number of calls
  // or messages (tenant_calls.h).
  const absl::StatusOr<std::string>& tenant() const { return tenant_; }
  // Counts one more message of the tenant's; RESOURCE_EXHAUSTED above its rate.
  absl::Status TakeMessage() const;
  // What the audit log says the call was about.
  void SetResource(std::string resource) { resource_ = std::move(resource); }
  // Counts the outcome, logs what is the server's fault, audits what changes something and what is
  // refused to the caller, and returns what to send.
  grpc::Status Finish(const absl::Status& status);
  const CallEnvironment& environment() const { return environment_; }
  const std::string& method() const { return method_; }

 private:
  void Audit(const absl::Status& status) const;

  const CallEnvironment& environment_;
  const std::string method_;  // "quantd.v1.Jobs/CreateJob"
  const absl::Time started_ = absl::Now();
  const std::string peer_;
  const absl::StatusOr<Caller> caller_;
  absl::StatusOr<std::string> tenant_;
  std::string resource_;
};

// A unary call: `handle(tenant)` runs on the executor; request and response live until it is done.
template <typename Request, typename Response, typename Handler>
grpc::ServerUnaryReactor* RunUnary(const CallEnvironment& environment,
                                   grpc::CallbackServerContext* context, absl::string_view method,
                                   const Request* request, Response* response, Handler handle) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  environment.executor.Post([call = Call(environment, context, method), reactor, request, response,
                             handle = std::move(handle)]() mutable {
    const absl::Status status =
        call.tenant().ok() ? handle(*call.tenant()) : call.tenant().status();
    // An answer names what the server chose; a request, what was asked for.
    std::string resource = RequestedResource(*response);
    call.SetResource(resource.empty() ? RequestedResource(*request) : std::move(resource));
    reactor->Finish(call.Finish(status));
  });
  return reactor;
}

// A server stream whose messages come from `next`, one after the other on the executor: true and a
// message, false at the end, or an error.
template <typename Response>
class StreamOut : public grpc::ServerWriteReactor<Response> {
 public:
  using Next = std::function<absl::StatusOr<bool>(Response&)>;
  StreamOut(Call call, absl::StatusOr<Next> next) : call_(std::move(call)), next_(std::move(next)) {
    Continue();
  }

 private:
  void Continue() {
    call_.environment().executor.Post([this] {
      if (!next_.ok()) return this->Finish(call_.Finish(next_.status()));
      response_.Clear();
      const absl::StatusOr<bool> more = (*next_)(response_);
      if (!more.ok() || !*more) return this->Finish(call_.Finish(more.status()));
      this->StartWrite(&response_);
    });
  }
  void OnWriteDone(bool ok) override {
    if (ok) return Continue();
    this->Finish(call_.Finish(absl::CancelledError("the client has gone")));
  }
  void OnDone() override { delete this; }

  Call call_;
  absl::StatusOr<Next> next_;
  Response response_;
};

// What a client stream is given to. Called one message at a time, on the executor.
template <typename Request, typename Response>
class StreamConsumer {
 public:
  virtual ~StreamConsumer() = default;
  virtual absl::Status OnMessage(Request& request) = 0;
  // The client has closed its side.
  virtual absl::Status OnEnd(Response& response) = 0;
};

// A client stream: reads a message, has it consumed, reads the next. The client is slowed down to
// what the consumer takes, and to what the server may hold; one that sends nothing is ended.
template <typename Request, typename Response>
class StreamIn : public grpc::ServerReadReactor<Request> {
 public:
  using Consumer = StreamConsumer<Request, Response>;
  StreamIn(Call call, std::unique_ptr<Consumer> consumer, Response* response)
      : call_(std::move(call)),
        consumer_(std::move(consumer)),
        response_(response),
        idle_(call_.environment().idle, [this] { OnIdle(); }) {
    if (call_.tenant().ok()) {
      Read();
    } else {
      End(call_.tenant().status());
    }
  }

 private:
  enum class State { kReading, kConsuming, kEnded };

  // While this waits, nothing ends the call, so that it is still there afterwards.
  void ReadWhenThereIsRoom() {
    call_.environment().inflight.WhenRoom([this] { Read(); });
  }

  void Read() {
    absl::MutexLock lock(&mutex_);
    state_ = State::kReading;
    idle_.Start();
    this->StartRead(&request_);
  }

  // The read may be answered at the same moment: whoever changes the state first goes on.
  bool LeaveReading(State next) {
    absl::MutexLock lock(&mutex_);
    if (state_ != State::kReading) return false;
    state_ = next;
    return true;
  }

  void OnIdle() {
    if (!LeaveReading(State::kEnded)) return;
    call_.environment().executor.Post([this] { End(IdleStatus(call_.environment().idle)); });
  }

  void OnReadDone(bool ok) override {
    if (!LeaveReading(State::kConsuming)) return;
    idle_.Stop();
    const int64_t bytes = ok ? static_cast<int64_t>(request_.ByteSizeLong()) : 0;
    call_.environment().inflight.Add(bytes);
    call_.environment().executor.Post([this, ok, bytes] {
      const absl::Status status = Consume(ok);
      call_.environment().inflight.Add(-bytes);
      if (ok && status.ok()) return ReadWhenThereIsRoom();
      End(status);
    });
  }

  absl::Status Consume(bool ok) {
    if (!ok) return consumer_->OnEnd(*response_);
    if (!begun_) call_.SetResource(RequestedResource(request_));
    begun_ = true;
    if (absl::Status s = call_.TakeMessage(); !s.ok()) return s;
    return consumer_->OnMessage(request_);
  }

  // The consumer lets go of what it holds before the client learns the outcome, so that the
  // client's next call finds it free.
  void End(const absl::Status& status) {
    consumer_.reset();
    this->Finish(call_.Finish(status));
  }
  void OnDone() override { delete this; }

  Call call_;
  std::unique_ptr<Consumer> consumer_;
  Response* response_;
  Request request_;
  bool begun_ = false;
  absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kConsuming;
  IdleStreams::Watch idle_;
};

}  // namespace quantd::server
