#include "server/ingest/strand.h"

#include <utility>

namespace quantd::server {

Executor::Executor(int threads) {
  threads_.reserve(threads);
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

Executor::~Executor() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void Executor::Post(std::function<void()> task) {
  absl::MutexLock lock(&mutex_);
  tasks_.push_back(std::move(task));
  changed_.Signal();
}

void Executor::Work() {
  for (;;) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mutex_);
      while (!stopping_ && tasks_.empty()) changed_.Wait(&mutex_);
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

void Strand::Post(std::function<void()> task) {
  {
    absl::MutexLock lock(&state_->mutex);
    state_->tasks.push_back(std::move(task));
    if (state_->scheduled) return;
    state_->scheduled = true;
  }
  state_->executor.Post([state = state_] { RunOne(state); });
}

void Strand::RunOne(const std::shared_ptr<State>& state) {
  {
    std::function<void()> task;
    {
      absl::MutexLock lock(&state->mutex);
      task = std::move(state->tasks.front());
      state->tasks.pop_front();
    }
    task();
  }
  {
    absl::MutexLock lock(&state->mutex);
    if (state->tasks.empty()) {
      state->scheduled = false;
      return;
    }
  }
  state->executor.Post([state] { RunOne(state); });
}

}  // namespace quantd::server
