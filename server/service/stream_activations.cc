#include "server/service/stream_activations.h"

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "server/errors/error.h"
#include "server/ingest/cuda_region.h"
#include "server/ingest/shared_region.h"
#include "server/service/activation_chunk.h"
#include "server/service/messages.h"
#include "server/service/resource_name.h"

namespace quantd::server {
namespace {

absl::StatusOr<Statistics::Declaration> ToDeclaration(const v1::ActivationHeader& header,
                                                      const std::string& tenant) {
  const auto name = ParseStatisticName("header.statistic", header.statistic(), tenant);
  if (!name.ok()) return name.status();
  if (absl::Status s = CheckId("header.stream_id", header.stream_id(), 64); !s.ok()) return s;
  const auto dtype = FromProto("header.dtype", header.dtype());
  if (!dtype.ok()) return dtype.status();
  const auto spec = FromProto(header);
  if (!spec.ok()) return spec.status();
  return Statistics::Declaration{name->tenant, name->first, header.stream_id(), *dtype, *spec};
}

absl::StatusOr<std::unique_ptr<ClientRegion>> OpenSharedRegion(const std::string& name,
                                                               const std::string& tenant,
                                                               bool allowed) {
  constexpr absl::string_view kField = "header.shared_region";
  if (!allowed) {
    return FailedPrecondition(
        "SHARED_MEMORY_OFF", kField,
        "this server takes no activations from shared memory; start it with --shared_memory (or "
        "shared_memory: true in its configuration), or send the chunks' data");
  }
  if (absl::Status s = CheckSharedRegionName(kField, name, tenant); !s.ok()) return s;
  auto region = SharedRegion::Open(name);
  if (!region.ok()) return Annotate(region.status(), kField);
  return *std::move(region);
}

absl::StatusOr<std::unique_ptr<ClientRegion>> OpenCudaRegion(
    const v1::CudaIpcRegion& named, const std::string& tenant,
    const ActivationStreamOptions& options) {
  if (!options.cuda_ipc) {
    return FailedPrecondition(
        "CUDA_IPC_OFF", "header.cuda_ipc",
        "this server takes no activations from a GPU's memory; start it with --cuda_ipc (or "
        "cuda_ipc: true in its configuration), or send the chunks' data");
  }
  auto region = CudaRegion::Open(
      {.handle = named.handle(), .device_uuid = named.device_uuid(), .bytes = named.bytes()},
      tenant, options.devices);
  if (!region.ok()) return region.status();
  return *std::move(region);
}

// The region that a header names; null where it names none.
absl::StatusOr<std::unique_ptr<ClientRegion>> OpenRegion(const v1::ActivationHeader& header,
                                                         const std::string& tenant,
                                                         const ActivationStreamOptions& options) {
  const bool shared = !header.shared_region().empty();
  if (shared && header.has_cuda_ipc()) {
    return InvalidField("header.cuda_ipc", "expected none beside a shared_region");
  }
  if (header.has_cuda_ipc()) return OpenCudaRegion(header.cuda_ipc(), tenant, options);
  if (shared) return OpenSharedRegion(header.shared_region(), tenant, options.shared_memory);
  return nullptr;
}

class StreamActivationsReactor final
    : public grpc::ServerBidiReactor<v1::StreamActivationsRequest, v1::StreamActivationsResponse>,
      public std::enable_shared_from_this<StreamActivationsReactor> {
 public:
  StreamActivationsReactor(Call call, Statistics& statistics,
                           const ActivationStreamOptions& options)
      : call_(std::move(call)),
        statistics_(statistics),
        options_(options),
        inflight_(call_.environment().inflight) {}
  ~StreamActivationsReactor() override { inflight_.Add(-held_bytes_); }

  void Begin() {
    self_ = shared_from_this();
    metrics().StreamOpened(Traffic::kActivations);
    // Called with the lock of IdleStreams, where the last reference must not be let go.
    idle_.emplace(call_.environment().idle,
                  [weak = weak_from_this(), &executor = call_.environment().executor] {
                    executor.Post([weak] {
                      if (const auto self = weak.lock(); self != nullptr) self->OnIdle();
                    });
                  });
    if (!call_.tenant().ok()) return End(call_.tenant().status());
    ReadMore();
  }

 private:
  Metrics& metrics() { return call_.environment().metrics; }

  // For those who may call after the stream is gone.
  template <typename Member>
  std::function<void()> WithSelf(Member member) {
    return [weak = weak_from_this(), member] {
      if (const auto self = weak.lock(); self != nullptr) member(*self);
    };
  }

  void OnIdle() { End(IdleStatus(call_.environment().idle)); }

  void OnReadDone(bool ok) override {
    idle_->Stop();
    if (!ok) return ReadingEnded();
    if (absl::Status s = call_.TakeMessage(); !s.ok()) return End(s);
    switch (request_.message_case()) {
      case v1::StreamActivationsRequest::kHeader:
        // Opening reads the store: not on this thread.
        call_.environment().executor.Post([self = shared_from_this()] { self->OnHeader(); });
        return;
      case v1::StreamActivationsRequest::kChunk:
        return OnChunk(*request_.mutable_chunk());
      case v1::StreamActivationsRequest::kFlush:
        if (stream_ == nullptr) return End(InvalidField("flush", "expected a header first"));
        stream_->Flush();
        return ReadMore();
      default:
        End(InvalidField("message", "expected header, chunk or flush, got none"));
    }
  }

  void OnHeader() {
    if (stream_ != nullptr) {
      return End(InvalidField("header", "expected one header, as the first message"));
    }
    call_.SetResource(request_.header().statistic());
    auto declaration = ToDeclaration(request_.header(), *call_.tenant());
    if (!declaration.ok()) return End(declaration.status());
    auto region = OpenRegion(request_.header(), declaration->tenant, options_);
    if (!region.ok()) return End(region.status());
    auto stream = statistics_.Open(*declaration);
    if (!stream.ok()) {
      region->reset();
      return End(stream.status());
    }
    {
      absl::MutexLock lock(&mutex_);
      region_ = *std::move(region);
      declaration_ = std::move(*declaration);
      stream_ = std::move(*stream);
      if (ending_) {  // the client went while the store was read
        region_.reset();
        statistics_.Close(*declaration_);
        return;
      }
    }
    const std::weak_ptr<StreamActivationsReactor> weak = weak_from_this();
    const auto with_self = [weak](auto call) {
      if (const auto self = weak.lock(); self != nullptr) call(*self);
    };
    stream_->SetListener({
        .progressed =
            [with_self](const ActivationAck& ack) {
              with_self([&](auto& self) { self.Acknowledge(ack); });
            },
        .failed =
            [with_self](const absl::Status& status) {
              with_self([&](auto& self) { self.End(status); });
            },
        .drained =
            [with_self] {
              with_self([](auto& self) {
                self.CountHeld();
                self.ResumeReading();
              });
            },
        .committed =
            [with_self, tenant = declaration_->tenant](int64_t tokens, absl::Duration latency,
                                                       absl::Duration took) {
              with_self([&](auto& self) {
                self.metrics().TokensAccumulated(tenant, tokens);
                self.metrics().ChunkDurable(absl::ToDoubleSeconds(latency));
                self.metrics().CommitFinished(Traffic::kActivations, absl::ToDoubleSeconds(took));
              });
            },
    });
    Acknowledge({stream_->durable_seq(), stream_->durable_seq()});
    ReadMore();
  }

  void OnChunk(v1::ActivationChunk& message) {
    if (stream_ == nullptr) return End(InvalidField("chunk", "expected a header first"));
    auto chunk = Take(message);
    if (!chunk.ok()) return End(chunk.status());
    metrics().BytesIn(*call_.tenant(), Traffic::kActivations, chunk->bytes());
    absl::Status pushed;
    {
      // Nothing is pushed behind what ends the stream, where the next writer may have come already.
      absl::MutexLock lock(&mutex_);
      if (ending_) return;
      pushed = stream_->Push(*std::move(chunk));
      paused_ = pushed.ok();
    }
    if (!pushed.ok()) return End(pushed);
    CountHeld();
    ResumeReading();
  }

  // The call does not finish while the region is read: then the client may free it.
  absl::StatusOr<ActivationChunk> Take(v1::ActivationChunk& message) {
    const auto keep = shared_from_this();
    {
      absl::MutexLock lock(&mutex_);
      if (ending_) return absl::CancelledError("the stream has ended");
      taking_ = true;
    }
    auto chunk = TakeChunk(message, region_.get());
    absl::MutexLock lock(&mutex_);
    taking_ = false;
    FinishIfWrittenLocked();
    return chunk;
  }

  // Reads on unless the stream's own credit, or the server's, is used up. Then called again: for
  // the stream's by `drained`, for the server's by the budget.
  void ResumeReading() {
    bool waits_for_others = false;
    {
      absl::MutexLock lock(&mutex_);
      if (!paused_ || ending_ || stream_->queued_bytes() >= options_.credit_bytes) return;
      waits_for_others = !inflight_.HasRoom();
      if (!waits_for_others) paused_ = false;
    }
    if (!waits_for_others) return ReadMore();
    inflight_.WhenRoom(WithSelf([](auto& self) { self.ResumeReading(); }));
  }

  // What the stream has queued is what it holds.
  void CountHeld() {
    int64_t change = 0;
    {
      absl::MutexLock lock(&mutex_);
      change = stream_->queued_bytes() - held_bytes_;
      held_bytes_ += change;
    }
    inflight_.Add(change);  // without the lock: others are resumed from within
  }

  // Once Finish was called, gRPC may be done with the call at any time.
  void ReadMore() {
    absl::MutexLock lock(&mutex_);
    if (finished_) return;
    idle_->Start();
    StartRead(&request_);
  }

  // The client closed its side, or is gone.
  void ReadingEnded() {
    End(stream_ == nullptr
            ? InvalidField("header", "expected a header before the end of the stream")
            : absl::OkStatus());
  }

  void OnCancel() override { End(absl::CancelledError("the client has gone")); }

  // Makes what was accepted durable, lets the next writer in, then tells the client.
  void End(const absl::Status& status) {
    std::shared_ptr<ActivationStream> stream;
    {
      absl::MutexLock lock(&mutex_);
      if (ending_) return;
      ending_ = true;
      stream = stream_;
    }
    if (stream == nullptr) return Close(status);
    stream->Finish([self = shared_from_this(), status](const absl::Status& finished) {
      self->statistics_.Close(*self->declaration_);
      self->Close(status.ok() ? finished : status);
    });
  }

  void Close(const absl::Status& status) {
    const auto keep = shared_from_this();  // past the lock: Finish may end in OnDone
    absl::MutexLock lock(&mutex_);
    final_status_ = status;
    FinishIfWrittenLocked();
  }

  void Acknowledge(const ActivationAck& ack) {
    absl::MutexLock lock(&mutex_);
    latest_.set_received_seq(ack.received_seq);
    latest_.set_durable_seq(ack.durable_seq);
    latest_.set_credit_bytes(options_.credit_bytes);
    unsent_ = true;
    WriteLocked();
  }

  void WriteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || !unsent_ || finished_) return;
    unsent_ = false;
    writing_ = true;
    response_ = latest_;
    StartWrite(&response_);
  }

  void OnWriteDone(bool ok) override {
    const auto keep = shared_from_this();
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (ok) WriteLocked();
    FinishIfWrittenLocked();
  }

  void FinishIfWrittenLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!final_status_.has_value() || writing_ || taking_ || finished_) return;
    finished_ = true;
    region_.reset();
    metrics().StreamClosed(Traffic::kActivations);
    Finish(call_.Finish(*final_status_));
  }

  void OnDone() override { self_.reset(); }

  Call call_;
  Statistics& statistics_;
  const ActivationStreamOptions options_;
  ByteBudget& inflight_;
  std::shared_ptr<StreamActivationsReactor> self_;  // until gRPC is done with it

  // Of the reading side: one read at a time is under way. The stream and its declaration are set
  // once, under the mutex, because End may come from elsewhere.
  v1::StreamActivationsRequest request_;
  std::optional<Statistics::Declaration> declaration_;
  std::shared_ptr<ActivationStream> stream_;
  std::unique_ptr<ClientRegion> region_;  // null: every chunk brings its bytes, or the call is over

  std::optional<IdleStreams::Watch> idle_;  // from Begin on

  absl::Mutex mutex_;
  int64_t held_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool taking_ ABSL_GUARDED_BY(mutex_) = false;  // a chunk's bytes out of the region
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool unsent_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  v1::StreamActivationsResponse latest_ ABSL_GUARDED_BY(mutex_);
  v1::StreamActivationsResponse response_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> final_status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

grpc::ServerBidiReactor<v1::StreamActivationsRequest, v1::StreamActivationsResponse>*
NewStreamActivationsReactor(Call call, Statistics& statistics,
                            const ActivationStreamOptions& options) {
  auto reactor = std::make_shared<StreamActivationsReactor>(std::move(call), statistics, options);
  reactor->Begin();
  return reactor.get();
}

}  // namespace quantd::server
