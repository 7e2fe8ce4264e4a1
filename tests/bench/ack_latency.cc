#include "tests/bench/ack_latency.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "quantd/v1/calibration.grpc.pb.h"

namespace quantd::bench {
namespace {

// What flies, shared by the writing and the reading thread.
class Window {
 public:
  explicit Window(int64_t credit, int64_t chunk_bytes)
      : most_in_flight_(std::max<int64_t>(1, credit / chunk_bytes)) {}

  // Waits for credit. False: the stream has ended.
  bool Sending(int64_t seq) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ended_ || seq - received_ <= most_in_flight_; });
    sent_.push_back(absl::Now());
    return !ended_;
  }
  bool WaitDurable(int64_t seq) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ended_ || durable_ >= seq; });
    return durable_ >= seq;
  }
  void Acknowledged(int64_t received, int64_t durable) {
    const absl::Time now = absl::Now();
    std::lock_guard lock(mutex_);
    received_ = std::max(received_, received);
    for (; durable_ < durable; ++durable_) {
      latencies_.push_back(absl::ToDoubleSeconds(now - sent_.front()));
      sent_.pop_front();
    }
    changed_.notify_all();
  }
  void End() {
    std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }
  std::vector<double> Latencies() {
    std::lock_guard lock(mutex_);
    return latencies_;
  }

 private:
  const int64_t most_in_flight_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<absl::Time> sent_;
  std::vector<double> latencies_;
  int64_t received_ = 0;
  int64_t durable_ = 0;
  bool ended_ = false;
};

}  // namespace

absl::StatusOr<std::vector<double>> MeasureAcks(const std::shared_ptr<grpc::Channel>& channel,
                                                const AckStream& plan) {
  const auto stub = v1::Calibration::NewStub(channel);
  grpc::ClientContext context;
  const auto stream = stub->StreamActivations(&context);
  v1::StreamActivationsRequest request;
  *request.mutable_header() = plan.header;
  v1::StreamActivationsResponse opened;
  if (!stream->Write(request) || !stream->Read(&opened)) {
    return absl::UnavailableError(stream->Finish().error_message());
  }
  Window window(opened.credit_bytes(), static_cast<int64_t>(plan.chunk.data().size()));
  std::thread reader([&] {
    v1::StreamActivationsResponse response;
    while (stream->Read(&response)) {
      window.Acknowledged(response.received_seq(), response.durable_seq());
    }
    window.End();
  });
  const absl::Time end = absl::Now() + absl::Seconds(plan.seconds);
  *request.mutable_chunk() = plan.chunk;
  v1::StreamActivationsRequest flush;
  flush.mutable_flush();
  for (int64_t seq = 1; absl::Now() < end; ++seq) {
    request.mutable_chunk()->set_seq(seq);
    if (!window.Sending(seq) || !stream->Write(request)) break;
    if (plan.flushes && (!stream->Write(flush) || !window.WaitDurable(seq))) break;
  }
  stream->WritesDone();
  reader.join();
  const grpc::Status status = stream->Finish();
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }
  std::vector<double> latencies = window.Latencies();
  if (latencies.empty()) return absl::InternalError("nothing was acknowledged");
  std::sort(latencies.begin(), latencies.end());
  return latencies;
}

}  // namespace quantd::bench
