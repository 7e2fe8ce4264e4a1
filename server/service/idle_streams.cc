#include "server/service/idle_streams.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/time/clock.h"

namespace quantd::server {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

}  // namespace

IdleStreams::IdleStreams(absl::Duration timeout)
    : timeout_(timeout), state_(std::make_shared<State>()), thread_([this] { Look(); }) {}

IdleStreams::~IdleStreams() {
  {
    absl::MutexLock lock(&state_->mutex);
    state_->stopping = true;
    state_->stop.Signal();
  }
  thread_.join();
}

void IdleStreams::Look() {
  // Late by a tenth at most, which nobody minds.
  const absl::Duration period =
      std::clamp(timeout_ / 10, absl::Milliseconds(20), absl::Seconds(10));
  State& state = *state_;
  absl::MutexLock lock(&state.mutex);
  while (!state.stopping) {
    state.stop.WaitWithTimeout(&state.mutex, period);
    const int64_t now = absl::GetCurrentTimeNanos();
    for (const auto& [id, entry] : state.entries) {
      int64_t deadline = entry.deadline->load();
      if (deadline > now) continue;
      // Unless it was stopped or started anew in between.
      if (entry.deadline->compare_exchange_strong(deadline, kNever)) entry.expired();
    }
  }
}

IdleStreams::Watch::Watch(IdleStreams& streams, std::function<void()> expired)
    : timeout_(streams.timeout_),
      state_(streams.state_),
      deadline_(std::make_shared<std::atomic<int64_t>>(kNever)) {
  absl::MutexLock lock(&state_->mutex);
  id_ = state_->next_id++;
  state_->entries[id_] = {deadline_, std::move(expired)};
}

IdleStreams::Watch::~Watch() {
  absl::MutexLock lock(&state_->mutex);
  state_->entries.erase(id_);
}

void IdleStreams::Watch::Start() {
  deadline_->store(absl::GetCurrentTimeNanos() + absl::ToInt64Nanoseconds(timeout_));
}

void IdleStreams::Watch::Stop() { deadline_->store(kNever); }

}  // namespace quantd::server
