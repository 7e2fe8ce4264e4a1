#include "compute/backend/cpu/worker_pool.h"

#include <algorithm>
#include <atomic>

namespace quantd::compute {
namespace {

thread_local bool inside_a_piece = false;

}  // namespace

struct WorkerPool::Loop {
  const int64_t begin;
  const int64_t end;
  const int64_t grain;
  const int64_t pieces;
  absl::FunctionRef<void(int64_t, int64_t)> body;
  std::atomic<int64_t> next{0};
  // Pieces not yet finished. A worker that comes late holds the loop by its shared_ptr, finds no
  // piece left and so never touches `body`, which is gone with the caller's frame by then.
  std::atomic<int64_t> unfinished;
  std::mutex mutex;
  std::condition_variable done;

  Loop(int64_t begin, int64_t end, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> body)
      : begin(begin),
        end(end),
        grain(grain),
        pieces((end - begin + grain - 1) / grain),
        body(body),
        unfinished(pieces) {}
};

WorkerPool::WorkerPool(int threads) {
  if (threads <= 0) threads = static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { Work(); });
}

WorkerPool::~WorkerPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void WorkerPool::ParallelFor(int64_t begin, int64_t end, int64_t grain,
                             absl::FunctionRef<void(int64_t, int64_t)> body) {
  if (begin >= end) return;
  grain = std::max<int64_t>(grain, 1);
  if (inside_a_piece || workers_.empty() || end - begin <= grain) {
    for (int64_t b = begin; b < end; b += grain) body(b, std::min(b + grain, end));
    return;
  }
  auto loop = std::make_shared<Loop>(begin, end, grain, body);
  {
    std::lock_guard lock(mutex_);
    loops_.push_back(loop);
  }
  if (loop->pieces > 2) {
    work_.notify_all();
  } else {
    work_.notify_one();
  }
  RunPieces(*loop);
  {
    std::lock_guard lock(mutex_);
    std::erase(loops_, loop);
  }
  std::unique_lock lock(loop->mutex);
  loop->done.wait(lock, [&] { return loop->unfinished.load(std::memory_order_acquire) == 0; });
}

void WorkerPool::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [this] { return stopping_ || !loops_.empty(); });
    if (stopping_) return;
    const std::shared_ptr<Loop> loop = loops_.front();
    lock.unlock();
    RunPieces(*loop);
    lock.lock();
    std::erase(loops_, loop);
  }
}

void WorkerPool::RunPieces(Loop& loop) {
  inside_a_piece = true;
  while (true) {
    const int64_t piece = loop.next.fetch_add(1, std::memory_order_relaxed);
    if (piece >= loop.pieces) break;
    const int64_t b = loop.begin + piece * loop.grain;
    loop.body(b, std::min(b + loop.grain, loop.end));
    if (loop.unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard lock(loop.mutex);
      loop.done.notify_all();
    }
  }
  inside_a_piece = false;
}

}  // namespace quantd::compute
