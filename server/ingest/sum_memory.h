#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace quantd::server {

// The memory of one device that open sums may take together. A model's sums are far larger than a
// GPU (650 GB for 70B parameters), but only some are added to at a time: where a stream finds no
// room, those used longest ago are asked to page out, and it waits for its turn. Thread-safe.
class SumMemory {
 public:
  explicit SumMemory(int64_t budget_bytes) : budget_(budget_bytes) {}

  using Id = int64_t;
  // A holder, from Take to Release. Both may be called from any thread, with no lock held, in any
  // order and a moment after Release.
  struct Claim {
    int64_t bytes = 0;
    std::function<void(Id)> granted;   // it may use the memory from now on; not if Take said so
    std::function<void(Id)> page_out;  // others wait: it should give its memory back soon
  };
  struct Taken {
    Id id = 0;
    bool granted = false;
  };
  // Grants at once where there is room and nobody waits. A claim larger than the whole budget gets
  // its turn once nothing else is held.
  Taken Take(Claim claim);
  // Its memory is in use: others page out first.
  void Touch(Id id);
  // Gives the memory back, or the place in the queue. Grants to those who wait, in their order.
  void Release(Id id);

  int64_t held_bytes() const;
  int waiting() const;
  // Claims that were asked to page out, since the start.
  int64_t page_outs() const;

 private:
  struct Holder {
    Claim claim;
    std::list<Id>::iterator place;  // in held_ or in queue_
    bool granted = false;
    bool asked = false;
  };
  using Calls = std::vector<std::function<void()>>;
  bool Fits(int64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return held_bytes_ + bytes <= budget_ || held_.empty();
  }
  void GrantLocked(Holder& holder) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Asks as many holders as the first in the queue needs, beyond those asked before.
  void AskLocked(Calls& calls) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t budget_;
  mutable absl::Mutex mutex_;
  Id next_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<Id, Holder> holders_ ABSL_GUARDED_BY(mutex_);
  std::list<Id> held_ ABSL_GUARDED_BY(mutex_);   // used longest ago in front
  std::list<Id> queue_ ABSL_GUARDED_BY(mutex_);  // next in front
  int64_t held_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t page_outs_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace quantd::server
