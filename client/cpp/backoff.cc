#include "client/cpp/backoff.h"

#include <algorithm>

namespace quantd::client {

Backoff::Backoff(absl::Duration budget, absl::Duration initial, absl::Duration longest)
    : budget_(budget), initial_(initial), longest_(longest), next_(initial) {}

std::optional<absl::Duration> Backoff::Next(std::optional<absl::Duration> asked_by_server) {
  if (spent_ >= budget_) return std::nullopt;
  if (asked_by_server && *asked_by_server > budget_ - spent_) return std::nullopt;
  // Jitter keeps the clients of a restarted server from coming back all at once.
  const double jitter = std::uniform_real_distribution<double>(0.75, 1.25)(random_);
  absl::Duration wait = next_ * jitter;
  if (asked_by_server) wait = std::max(wait, *asked_by_server);
  wait = std::min(wait, budget_ - spent_);
  next_ = std::min(next_ * 2, longest_);
  spent_ += wait;
  return wait;
}

void Backoff::Reset() {
  next_ = initial_;
  spent_ = absl::ZeroDuration();
}

}  // namespace quantd::client
