#pragma once

#include <cstdint>
#include <optional>
#include <random>

#include "absl/time/time.h"

namespace quantd::client {

// How long to wait before trying again: exponential with jitter, until the waits add up to a
// budget. Progress resets it. Thread-compatible.
class Backoff {
 public:
  explicit Backoff(absl::Duration budget, absl::Duration initial = absl::Milliseconds(50),
                   absl::Duration longest = absl::Seconds(5));

  // The next wait, not shorter than what the server asked for; nothing once the budget is spent, or
  // where it does not suffice for that.
  std::optional<absl::Duration> Next(std::optional<absl::Duration> asked_by_server = std::nullopt);
  void Reset();

 private:
  const absl::Duration budget_;
  const absl::Duration initial_;
  const absl::Duration longest_;
  absl::Duration next_;
  absl::Duration spent_ = absl::ZeroDuration();
  std::minstd_rand random_{std::random_device{}()};
};

}  // namespace quantd::client
