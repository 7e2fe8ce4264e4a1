#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace quantd::server {

// Threads for work that must not run on gRPC's own: disk, database, accumulation. Thread-safe.
class Executor {
 public:
  explicit Executor(int threads);
  // Runs what was posted, then joins.
  ~Executor();
  void Post(std::function<void()> task);

 private:
  void Work();

  // A condition variable rather than Mutex::Await, whose conditions other threads evaluate where
  // ThreadSanitizer does not see them hold the lock.
  absl::Mutex mutex_;
  absl::CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

// Runs posted tasks one after the other, in order, on an executor. Costs no thread while idle, so
// there may be thousands. May be destroyed with tasks pending, from within one too: they still run.
// Thread-safe.
class Strand {
 public:
  explicit Strand(Executor& executor) : state_(std::make_shared<State>(executor)) {}
  void Post(std::function<void()> task);

 private:
  struct State {
    explicit State(Executor& e) : executor(e) {}
    Executor& executor;
    absl::Mutex mutex;
    std::deque<std::function<void()>> tasks ABSL_GUARDED_BY(mutex);
    bool scheduled ABSL_GUARDED_BY(mutex) = false;
  };
  static void RunOne(const std::shared_ptr<State>& state);

  std::shared_ptr<State> state_;
};

}  // namespace quantd::server
