#include "client/cpp/connection.h"

#include <fstream>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/errors.h"

namespace quantd::client {
namespace {

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file || !absl::StrContains(text, "-----BEGIN")) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a readable PEM file"));
  }
  return text;
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(
    const ConnectOptions& options) {
  const bool mutual = !options.certificate_file.empty() || !options.key_file.empty();
  if (!options.tls && options.ca_file.empty() && !mutual) {
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions ssl;
  absl::StatusOr<std::string> pem = ReadPem(options.ca_file);
  if (!pem.ok()) return pem.status();
  ssl.pem_root_certs = *std::move(pem);
  if (mutual) {
    if (options.certificate_file.empty() || options.key_file.empty()) {
      return absl::InvalidArgumentError(
          "a client certificate needs both its certificate file and its key file");
    }
    if (pem = ReadPem(options.certificate_file); !pem.ok()) return pem.status();
    ssl.pem_cert_chain = *std::move(pem);
    if (pem = ReadPem(options.key_file); !pem.ok()) return pem.status();
    ssl.pem_private_key = *std::move(pem);
  }
  return grpc::SslCredentials(ssl);
}

bool IsLoopback(absl::string_view address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]") || absl::StartsWith(address, "unix:");
}

grpc::ChannelArguments ChannelOptions(const ConnectOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(16 << 20);
  arguments.SetUserAgentPrefix("quantctl");
  // The channel's own back-off must not outlast ours, or a server that is back goes unnoticed.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 3000);
  // Notices a peer that vanished during a long watch. Servers may close connections that ping more
  // often than every five minutes without data (gRPC proposal A8).
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 330'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  if (IsLoopback(options.address)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // Two clients in one process have a connection each, instead of sharing one by address.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return arguments;
}

}  // namespace

Connection::Connection(ConnectOptions options, const std::shared_ptr<grpc::Channel>& channel)
    : server_stub(v1::Server::NewStub(channel)),
      jobs(v1::Jobs::NewStub(channel)),
      weights(v1::Weights::NewStub(channel)),
      calibration(v1::Calibration::NewStub(channel)),
      results(v1::Results::NewStub(channel)),
      options_(std::move(options)) {}

absl::StatusOr<std::shared_ptr<Connection>> Connection::Create(const ConnectOptions& options) {
  if (options.address.empty()) return absl::InvalidArgumentError("address: expected HOST:PORT");
  auto credentials = Credentials(options);
  if (!credentials.ok()) return credentials.status();
  auto channel = grpc::CreateCustomChannel(options.address, *credentials, ChannelOptions(options));
  return std::shared_ptr<Connection>(new Connection(options, channel));
}

int64_t Connection::ChunkBytes() const {
  int64_t bytes = options_.chunk_bytes;
  for (const int64_t limit : {server_.limits.max_chunk_bytes, server_.limits.stream_credit_bytes}) {
    if (limit > 0) bytes = std::min(bytes, limit);
  }
  return bytes;
}

void Connection::Interrupt() {
  const std::lock_guard lock(mutex_);
  interrupted_ = true;
  for (grpc::ClientContext* context : running_) context->TryCancel();
  interrupt_.notify_all();
}

bool Connection::interrupted() const {
  const std::lock_guard lock(mutex_);
  return interrupted_;
}

absl::Status Connection::WaitToRetry(const absl::Status& failure, Backoff& backoff) {
  if (!IsTransient(failure)) return failure;
  const std::optional<absl::Duration> wait = backoff.Next(RetryDelay(failure));
  if (!wait) return failure;
  std::unique_lock lock(mutex_);
  interrupt_.wait_for(lock, absl::ToChronoNanoseconds(*wait), [this] { return interrupted_; });
  return interrupted_ ? absl::CancelledError("interrupted") : absl::OkStatus();
}

absl::Status Connection::ToStatus(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  if (interrupted()) return absl::CancelledError("interrupted");
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty()) {
    // Comes from the transport: say which server it is about.
    return StatusFromWire(
        status.error_code(),
        absl::StrCat("cannot reach the server at ", options_.address, ": ", status.error_message()),
        "");
  }
  return StatusFromWire(status.error_code(), status.error_message(), status.error_details());
}

bool IsAtLimit(const absl::Status& status) {
  return absl::IsResourceExhausted(status) && RetryDelay(status).has_value();
}

bool IsTransient(const absl::Status& status) {
  // A server that shuts down ends its streams with CANCELLED; our own cancellation reads
  // "interrupted" and is seen to before.
  return absl::IsUnavailable(status) || IsAtLimit(status) ||
         (absl::IsCancelled(status) && status.message() != "interrupted") ||
         (absl::IsUnknown(status) && absl::StrContains(status.message(), "Stream removed"));
}

Call::Call(Connection& connection, absl::Duration timeout) : connection_(connection) {
  if (timeout != absl::InfiniteDuration()) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  }
  if (!connection.options().token.empty()) {
    context_.AddMetadata("authorization", absl::StrCat("Bearer ", connection.options().token));
  }
  const std::lock_guard lock(connection.mutex_);
  connection.running_.insert(&context_);
  if (connection.interrupted_) context_.TryCancel();
}

Call::~Call() {
  const std::lock_guard lock(connection_.mutex_);
  connection_.running_.erase(&context_);
}

}  // namespace quantd::client
