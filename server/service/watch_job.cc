#include "server/service/watch_job.h"

#include <memory>
#include <optional>
#include <utility>

#include "server/service/messages.h"
#include "server/service/resource_name.h"

namespace quantd::server {
namespace {

class WatchJobReactor final : public grpc::ServerWriteReactor<v1::WatchJobResponse>,
                              public std::enable_shared_from_this<WatchJobReactor> {
 public:
  WatchJobReactor(Call call, JobEngine& engine)
      : call_(std::move(call)), engine_(engine), strand_(call_.environment().executor) {}

  void Begin(const std::string& name) {
    self_ = shared_from_this();
    call_.environment().metrics.StreamOpened(Traffic::kWatch);
    strand_.Post([self = self_, name] { self->Open(name); });
  }

 private:
  // All of it runs on the strand.
  void Open(const std::string& name) {
    if (!call_.tenant().ok()) return End(call_.tenant().status());
    auto parsed = ParseJobName("name", name, *call_.tenant());
    if (!parsed.ok()) return End(parsed.status());
    name_ = std::move(*parsed);
    subscription_ =
        engine_.Subscribe(name_.tenant, name_.first, [weak = weak_from_this()] { Changed(weak); });
    Send();
  }

  static void Changed(const std::weak_ptr<WatchJobReactor>& weak) {
    if (const auto self = weak.lock(); self != nullptr) {
      self->strand_.Post([self] { self->Send(); });
    }
  }

  void Send() {
    if (ended_) return;
    if (writing_) {
      changed_ = true;
      return;
    }
    changed_ = false;
    const absl::StatusOr<JobView> view = engine_.Get(name_.tenant, name_.first);
    if (!view.ok()) return End(view.status());
    v1::WatchJobResponse next;
    *next.mutable_job() = ToProto(*view);
    next.set_queue_position(view->queue.position);
    if (view->queue.eta_seconds.has_value()) next.set_eta_seconds(*view->queue.eta_seconds);
    std::string bytes = next.SerializeAsString();
    const bool job_ended = HasEnded(view->job.state);
    if (bytes == last_sent_) {
      if (job_ended) End(absl::OkStatus());
      return;
    }
    last_sent_ = std::move(bytes);
    response_ = std::move(next);
    last_message_ = job_ended;
    writing_ = true;
    StartWrite(&response_);
  }

  void Written(bool ok) {
    writing_ = false;
    if (ended_) return;
    if (!ok) return End(absl::CancelledError("the client has gone"));
    if (last_message_) return End(absl::OkStatus());
    if (changed_) Send();
  }

  void End(const absl::Status& status) {
    if (ended_) return;
    ended_ = true;
    if (subscription_.has_value()) engine_.Unsubscribe(*subscription_);
    call_.environment().metrics.StreamClosed(Traffic::kWatch);
    Finish(call_.Finish(status));
  }

  void OnWriteDone(bool ok) override {
    strand_.Post([self = shared_from_this(), ok] { self->Written(ok); });
  }
  void OnCancel() override {
    strand_.Post(
        [self = shared_from_this()] { self->End(absl::CancelledError("the client has gone")); });
  }
  void OnDone() override { self_.reset(); }

  Call call_;
  JobEngine& engine_;
  Strand strand_;
  std::shared_ptr<WatchJobReactor> self_;  // until gRPC is done with it
  ResourceName name_;
  std::optional<int64_t> subscription_;
  v1::WatchJobResponse response_;
  std::string last_sent_;
  bool last_message_ = false;
  bool writing_ = false;
  bool changed_ = false;
  bool ended_ = false;
};

}  // namespace

grpc::ServerWriteReactor<v1::WatchJobResponse>* NewWatchJobReactor(Call call, JobEngine& engine,
                                                                   const std::string& name) {
  auto reactor = std::make_shared<WatchJobReactor>(std::move(call), engine);
  reactor->Begin(name);
  return reactor.get();
}

}  // namespace quantd::server
