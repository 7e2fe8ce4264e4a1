#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace quantd::server {

// Bytes of messages that the server holds at once, over all streams of all tenants. It is counted
// rather than reserved: a stream is read on while there is room, so what is held exceeds the total
// by at most one message a stream that was being read. Thread-safe.
class ByteBudget {
 public:
  explicit ByteBudget(int64_t total) : total_(total) {}

  // Counts more (or, below 0, fewer) bytes as held. Whoever waits hears of room from within.
  void Add(int64_t bytes);
  // Counts `bytes` as held if that stays within the total.
  bool Take(int64_t bytes);
  bool HasRoom() const;
  // Calls `resume` once when there is room: from within if there is, else from any thread's Add. It
  // must not block.
  void WhenRoom(std::function<void()> resume);

  int64_t total() const { return total_; }
  int64_t held() const;

 private:
  const int64_t total_;
  mutable absl::Mutex mutex_;
  int64_t held_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::function<void()>> waiting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace quantd::server
