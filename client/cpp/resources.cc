#include "client/cpp/resources.h"

#include "absl/strings/str_cat.h"

namespace quantd::client {

absl::string_view NameOf(JobState state) {
  switch (state) {
    case JobState::kUnspecified:
      break;
    case JobState::kAccepting:
      return "accepting";
    case JobState::kQueued:
      return "queued";
    case JobState::kRunning:
      return "running";
    case JobState::kSucceeded:
      return "succeeded";
    case JobState::kFailed:
      return "failed";
    case JobState::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

absl::string_view NameOf(LayerState state) {
  switch (state) {
    case LayerState::kUnspecified:
      break;
    case LayerState::kWaiting:
      return "waiting";
    case LayerState::kQueued:
      return "queued";
    case LayerState::kRunning:
      return "running";
    case LayerState::kSucceeded:
      return "succeeded";
    case LayerState::kFailed:
      return "failed";
    case LayerState::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

absl::string_view NameOf(Priority priority) {
  switch (priority) {
    case Priority::kUnspecified:
      break;
    case Priority::kLow:
      return "low";
    case Priority::kNormal:
      return "normal";
    case Priority::kHigh:
      return "high";
  }
  return "unknown";
}

absl::StatusOr<Priority> ParsePriority(absl::string_view name) {
  for (const Priority priority : {Priority::kLow, Priority::kNormal, Priority::kHigh}) {
    if (name == NameOf(priority)) return priority;
  }
  return absl::InvalidArgumentError(absl::StrCat("expected low, normal or high, got '", name, "'"));
}

absl::string_view NameOf(StatisticState state) {
  switch (state) {
    case StatisticState::kUnspecified:
      break;
    case StatisticState::kOpen:
      return "open";
    case StatisticState::kSealed:
      return "sealed";
  }
  return "unknown";
}

absl::string_view NameOf(StatisticKind kind) {
  switch (kind) {
    case StatisticKind::kUnspecified:
      break;
    case StatisticKind::kSecondMoment:
      return "second_moment";
    case StatisticKind::kWeighted:
      return "weighted";
    case StatisticKind::kCrossMoment:
      return "cross_moment";
    case StatisticKind::kResidualMoment:
      return "residual_moment";
  }
  return "unknown";
}

bool HasEnded(JobState state) {
  return state == JobState::kSucceeded || state == JobState::kFailed ||
         state == JobState::kCancelled;
}

bool HasEnded(LayerState state) {
  return state == LayerState::kSucceeded || state == LayerState::kFailed ||
         state == LayerState::kCancelled;
}

}  // namespace quantd::client
