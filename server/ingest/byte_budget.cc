#include "server/ingest/byte_budget.h"

#include <utility>

namespace quantd::server {

void ByteBudget::Add(int64_t bytes) {
  std::vector<std::function<void()>> woken;
  {
    absl::MutexLock lock(&mutex_);
    held_ += bytes;
    // All of them: one that is woken and whose client sends nothing would wake nobody else.
    if (held_ < total_) woken.swap(waiting_);
  }
  for (const auto& resume : woken) resume();
}

bool ByteBudget::Take(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (bytes > total_ - held_) return false;
  held_ += bytes;
  return true;
}

bool ByteBudget::HasRoom() const {
  absl::MutexLock lock(&mutex_);
  return held_ < total_;
}

void ByteBudget::WhenRoom(std::function<void()> resume) {
  {
    absl::MutexLock lock(&mutex_);
    if (held_ >= total_) {
      waiting_.push_back(std::move(resume));
      return;
    }
  }
  resume();
}

int64_t ByteBudget::held() const {
  absl::MutexLock lock(&mutex_);
  return held_;
}

}  // namespace quantd::server
