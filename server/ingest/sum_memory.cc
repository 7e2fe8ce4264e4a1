#include "server/ingest/sum_memory.h"

#include <utility>

namespace quantd::server {

SumMemory::Taken SumMemory::Take(Claim claim) {
  Calls calls;
  Taken taken;
  {
    absl::MutexLock lock(&mutex_);
    taken.id = next_++;
    Holder& holder = holders_[taken.id];
    holder.claim = std::move(claim);
    holder.place = queue_.insert(queue_.end(), taken.id);
    if (queue_.size() == 1 && Fits(holder.claim.bytes)) GrantLocked(holder);
    taken.granted = holder.granted;
    AskLocked(calls);
  }
  for (const auto& call : calls) call();
  return taken;
}

void SumMemory::GrantLocked(Holder& holder) {
  holder.granted = true;
  held_bytes_ += holder.claim.bytes;
  held_.splice(held_.end(), queue_, holder.place);
}

void SumMemory::AskLocked(Calls& calls) {
  if (queue_.empty()) return;
  int64_t left = held_bytes_;
  for (const Id id : held_) {
    if (holders_[id].asked) left -= holders_[id].claim.bytes;
  }
  const int64_t wanted = holders_[queue_.front()].claim.bytes;
  for (const Id id : held_) {
    if (left == 0 || left + wanted <= budget_) return;
    Holder& holder = holders_[id];
    if (holder.asked) continue;
    holder.asked = true;
    ++page_outs_;
    left -= holder.claim.bytes;
    calls.push_back([call = holder.claim.page_out, id] { call(id); });
  }
}

void SumMemory::Touch(Id id) {
  absl::MutexLock lock(&mutex_);
  const auto found = holders_.find(id);
  if (found == holders_.end() || !found->second.granted) return;
  held_.splice(held_.end(), held_, found->second.place);
}

void SumMemory::Release(Id id) {
  Calls calls;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = holders_.find(id);
    if (found == holders_.end()) return;
    if (found->second.granted) held_bytes_ -= found->second.claim.bytes;
    (found->second.granted ? held_ : queue_).erase(found->second.place);
    holders_.erase(found);
    while (!queue_.empty() && Fits(holders_[queue_.front()].claim.bytes)) {
      const Id first = queue_.front();
      Holder& next = holders_[first];
      GrantLocked(next);
      calls.push_back([call = next.claim.granted, first] { call(first); });
    }
    AskLocked(calls);
  }
  for (const auto& call : calls) call();
}

int64_t SumMemory::held_bytes() const {
  absl::MutexLock lock(&mutex_);
  return held_bytes_;
}

int SumMemory::waiting() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(queue_.size());
}

int64_t SumMemory::page_outs() const {
  absl::MutexLock lock(&mutex_);
  return page_outs_;
}

}  // namespace quantd::server
