#include "server/ingest/moment_cache.h"

#include <utility>

namespace quantd::server {
namespace {

int64_t BytesOf(const compute::SecondMoment& moment) {
  return static_cast<int64_t>((moment.sum().size() + moment.pending().size()) * sizeof(double)) +
         moment.sample().size() * moment.sample().cols() * static_cast<int64_t>(sizeof(float));
}

}  // namespace

std::shared_ptr<const compute::SecondMoment> MomentCache::Get(const std::string& blob) {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(blob);
  if (found == entries_.end()) return nullptr;
  order_.splice(order_.begin(), order_, found->second.place);
  return found->second.moment;
}

void MomentCache::Put(const std::string& blob,
                      std::shared_ptr<const compute::SecondMoment> moment) {
  const int64_t bytes = BytesOf(*moment);
  absl::MutexLock lock(&mutex_);
  EraseLocked(blob);
  if (bytes > budget_) return;
  while (bytes_ + bytes > budget_) EraseLocked(order_.back());
  order_.push_front(blob);
  bytes_ += bytes;
  entries_[blob] = {.moment = std::move(moment), .bytes = bytes, .place = order_.begin()};
}

void MomentCache::Erase(const std::string& blob) {
  absl::MutexLock lock(&mutex_);
  EraseLocked(blob);
}

void MomentCache::EraseLocked(const std::string& blob) {
  const auto found = entries_.find(blob);
  if (found == entries_.end()) return;
  bytes_ -= found->second.bytes;
  order_.erase(found->second.place);
  entries_.erase(found);
}

int64_t MomentCache::bytes() const {
  absl::MutexLock lock(&mutex_);
  return bytes_;
}

}  // namespace quantd::server
