#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace quantd::compute {

// A fixed set of threads for data-parallel loops. Which thread runs a piece is left to chance, what
// a piece is is not: pieces depend on the arguments alone, so a loop whose pieces write disjoint
// results gives the same bits on any number of threads.
// Thread-safe: loops started by several threads at once share the workers.
class WorkerPool {
 public:
  // `threads` >= 1 counts the caller of ParallelFor, who works too; 0: one a core.
  explicit WorkerPool(int threads = 0);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs body(b, e) for the pieces [begin, begin + grain), [begin + grain, ...) of [begin, end) and
  // returns when all are done. A call from inside a body runs its pieces in the calling thread.
  // `body` must not throw.
  void ParallelFor(int64_t begin, int64_t end, int64_t grain,
                   absl::FunctionRef<void(int64_t, int64_t)> body);

 private:
  struct Loop;

  void Work();
  static void RunPieces(Loop& loop);

  std::mutex mutex_;
  std::condition_variable work_;
  bool stopping_ = false;                     // guarded by mutex_
  std::vector<std::shared_ptr<Loop>> loops_;  // with pieces left to take; guarded by mutex_
  std::vector<std::thread> workers_;
};

}  // namespace quantd::compute
