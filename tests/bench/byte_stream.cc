#include "tests/bench/byte_stream.h"

#include <grpcpp/generic/generic_stub.h>

#include <condition_variable>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "quantd/v1/calibration.pb.h"

namespace quantd::bench {
namespace {

std::string Flatten(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

class Streamer final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Streamer(const std::shared_ptr<grpc::Channel>& channel, const StreamPlan& plan)
      : plan_(plan), stub_(channel) {
    if (!plan_.keeps_credit) credit_bytes_ = std::numeric_limits<int64_t>::max();
    stub_.PrepareBidiStreamingCall(&context_, plan_.method, {}, this);
    outgoing_ = plan_.header;
    StartWrite(&outgoing_);
    StartRead(&incoming_);
    StartCall();
  }

  absl::StatusOr<StreamOutcome> Wait() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return status_.has_value(); });
    if (!status_->ok()) {
      return absl::Status(static_cast<absl::StatusCode>(status_->error_code()),
                          status_->error_message());
    }
    return StreamOutcome{sent_ * plan_.chunk_bytes, absl::ToDoubleSeconds(finish_ - start_),
                         std::move(response_)};
  }

 private:
  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) {
      closed_ = true;
      return;
    }
    header_written_ = true;
    Continue();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    std::string response = Flatten(incoming_);
    {
      const std::lock_guard lock(mutex_);
      response_ = std::move(response);
      v1::StreamActivationsResponse answer;
      if (plan_.keeps_credit && answer.ParseFromString(response_)) {
        credit_bytes_ = answer.credit_bytes();
        received_ = answer.received_seq();
      }
      Continue();
    }
    StartRead(&incoming_);
  }

  void OnDone(const grpc::Status& status) override {
    const std::lock_guard lock(mutex_);
    finish_ = absl::Now();
    status_ = status;
    ended_.notify_all();
  }

  // Under the lock: the next message, if one may be sent now.
  void Continue() {
    if (writing_ || closed_ || !header_written_) return;
    const bool enough = plan_.chunks > 0
                            ? sent_ == plan_.chunks
                            : sent_ > 0 && absl::Now() - start_ >= absl::Seconds(plan_.seconds);
    if (enough) {
      if (plan_.last && !last_sent_) {
        last_sent_ = true;
        return Write(plan_.last());
      }
      closed_ = true;
      StartWritesDone();
      return;
    }
    if ((sent_ - received_ + 1) * plan_.chunk_bytes > credit_bytes_ && credit_bytes_ >= 0) return;
    if (sent_ == 0) start_ = absl::Now();
    ++sent_;
    Write(plan_.chunk(sent_));
  }

  void Write(const grpc::ByteBuffer& message) {
    writing_ = true;
    outgoing_ = message;
    StartWrite(&outgoing_);
  }

  const StreamPlan& plan_;
  grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer> stub_;
  grpc::ClientContext context_;
  grpc::ByteBuffer outgoing_;
  grpc::ByteBuffer incoming_;

  std::mutex mutex_;
  std::condition_variable ended_;
  bool writing_ = true;  // the header
  bool header_written_ = false;
  bool last_sent_ = false;
  bool closed_ = false;
  int64_t credit_bytes_ = 0;
  int64_t sent_ = 0;
  int64_t received_ = 0;
  absl::Time start_;
  absl::Time finish_;
  std::string response_;
  std::optional<grpc::Status> status_;
};

}  // namespace

grpc::ByteBuffer ToBytes(const std::string& message) {
  const grpc::Slice slice(message);
  return {&slice, 1};
}

grpc::ByteBuffer ToBytes(const std::string& prefix, const std::string& data,
                         const std::string& suffix) {
  const grpc::Slice slices[] = {
      grpc::Slice(prefix),
      grpc::Slice(data.data(), data.size(), grpc::Slice::STATIC_SLICE),
      grpc::Slice(suffix),
  };
  return {slices, suffix.empty() ? size_t{2} : size_t{3}};
}

absl::StatusOr<StreamOutcome> RunStream(const std::shared_ptr<grpc::Channel>& channel,
                                        const StreamPlan& plan) {
  Streamer streamer(channel, plan);
  return streamer.Wait();
}

}  // namespace quantd::bench
