#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "compute/second_moment/second_moment.h"

namespace quantd::server {

// Moments of statistics in host memory, by the name of the blob that holds them, up to a budget of
// bytes; the ones used longest ago go first. Layers that share a statistic then read and verify it
// once, and one that is sealed and used at once is not read at all. Thread-safe.
class MomentCache {
 public:
  explicit MomentCache(int64_t budget_bytes) : budget_(budget_bytes) {}

  // Null where it is not here.
  std::shared_ptr<const compute::SecondMoment> Get(const std::string& blob);
  // Keeps it unless it alone exceeds the budget.
  void Put(const std::string& blob, std::shared_ptr<const compute::SecondMoment> moment);
  void Erase(const std::string& blob);
  int64_t bytes() const;

 private:
  struct Entry {
    std::shared_ptr<const compute::SecondMoment> moment;
    int64_t bytes = 0;
    std::list<std::string>::iterator place;  // in order_
  };
  void EraseLocked(const std::string& blob) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t budget_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::list<std::string> order_ ABSL_GUARDED_BY(mutex_);  // used last in front
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace quantd::server
