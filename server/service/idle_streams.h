#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace quantd::server {

// Notices streams whose client has sent nothing for too long. One thread for all of them; an idle
// stream costs a map entry. Thread-safe.
class IdleStreams {
 private:
  struct Entry {
    std::shared_ptr<std::atomic<int64_t>> deadline;
    std::function<void()> expired;
  };
  struct State {
    absl::Mutex mutex;
    absl::CondVar stop;
    bool stopping ABSL_GUARDED_BY(mutex) = false;
    std::map<int64_t, Entry> entries ABSL_GUARDED_BY(mutex);
    int64_t next_id ABSL_GUARDED_BY(mutex) = 1;
  };

 public:
  explicit IdleStreams(absl::Duration timeout);
  ~IdleStreams();
  absl::Duration timeout() const { return timeout_; }

  // One stream. May be destroyed after its IdleStreams. Thread-safe.
  class Watch {
   public:
    // `expired` is called at most once a Start, from the thread of IdleStreams; it must not block,
    // nor destroy the watch.
    Watch(IdleStreams& streams, std::function<void()> expired);
    // Returns once no call of `expired` is under way.
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;
    void Start();  // waiting for the client from now on
    void Stop();   // it has sent something, or is not waited for

   private:
    const absl::Duration timeout_;
    const std::shared_ptr<State> state_;
    const std::shared_ptr<std::atomic<int64_t>> deadline_;  // Unix nanoseconds
    int64_t id_;
  };

 private:
  void Look();

  const absl::Duration timeout_;
  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace quantd::server
