#include "client/cli/watch_display.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace quantd::cli {
namespace {

using client::JobUpdate;
using client::Layer;
using client::LayerState;

std::string DescribeLayer(const Layer& layer) {
  std::string line = absl::StrCat(layer.layer_id, ": ", NameOf(layer.state));
  if (layer.state == LayerState::kRunning && !layer.stage.empty()) {
    absl::StrAppend(&line, ", ", layer.stage, absl::StrFormat(" %.0f%%", 100 * layer.progress));
  }
  if (layer.state == LayerState::kSucceeded) {
    absl::StrAppend(&line, " in ", HumanSeconds(layer.device_seconds));
  }
  if (!layer.error.ok()) absl::StrAppend(&line, ": ", layer.error.message());
  return line;
}

double JobProgress(const client::Job& job) {
  if (job.layers.empty()) return 0.0;
  double sum = 0.0;
  for (const Layer& layer : job.layers) {
    sum += HasEnded(layer.state) ? 1.0 : std::clamp(layer.progress, 0.0, 1.0);
  }
  return sum / static_cast<double>(job.layers.size());
}

// The steps that run, at most three of them.
std::string RunningSteps(const client::Job& job) {
  std::vector<std::string> steps;
  for (const Layer& layer : job.layers) {
    if (layer.state != LayerState::kRunning) continue;
    if (steps.size() == 3) {
      steps.emplace_back("...");
      break;
    }
    steps.push_back(job.layers.size() == 1 ? layer.stage
                                           : absl::StrCat(layer.layer_id, " ", layer.stage));
  }
  return absl::StrJoin(steps, ", ");
}

}  // namespace

WatchDisplay::WatchDisplay(const Output& output, bool every_state)
    : output_(output), every_state_(every_state), bar_(output) {}

void WatchDisplay::Update(const JobUpdate& update) {
  if (output_.quiet) return;
  PrintChanges(update);
  DrawBar(update);
}

void WatchDisplay::PrintChanges(const JobUpdate& update) {
  for (const Layer& layer : update.job.layers) {
    const auto [known, first] = layers_.try_emplace(layer.layer_id, layer.state);
    if (!first && known->second == layer.state) continue;
    known->second = layer.state;
    if (!every_state_ && layer.state != LayerState::kFailed) continue;
    std::string line = DescribeLayer(layer);
    if (layer.state == LayerState::kQueued && update.job.queue_position > 0) {
      absl::StrAppend(&line, ", job at position ", update.job.queue_position);
    }
    bar_.PrintAbove(line);
  }
}

void WatchDisplay::DrawBar(const JobUpdate& update) {
  const client::Job& job = update.job;
  std::vector<std::string> parts;
  if (job.layers.size() > 1) {
    parts.push_back(absl::StrCat(job.finished_layers, "/", job.layers.size(), " layers"));
  }
  parts.push_back(DescribeJob(update));
  if (std::string steps = RunningSteps(job); !steps.empty()) parts.push_back(std::move(steps));
  bar_.Show("quantizing", JobProgress(job), absl::StrJoin(parts, ", "));
}

std::string DescribeJob(const JobUpdate& update) {
  std::string text(NameOf(update.job.state));
  if (const std::string queue = DescribeQueue(update.job); queue != "-") {
    absl::StrAppend(&text, ", ", queue);
  }
  return text;
}

std::string DescribeQueue(const client::Job& job) {
  std::vector<std::string> parts;
  if (job.queue_position > 0) parts.push_back(absl::StrCat("position ", job.queue_position));
  if (job.eta_seconds) parts.push_back(absl::StrCat(HumanSeconds(*job.eta_seconds), " left"));
  if (job.quota_wait) {
    parts.push_back(absl::StrCat("waits for ", job.quota_wait->quota));
    if (job.quota_wait->until) {
      absl::StrAppend(&parts.back(), " until ", LocalTime(*job.quota_wait->until));
    }
  }
  return parts.empty() ? "-" : absl::StrJoin(parts, ", ");
}

absl::Status Outcome(const client::Job& job) {
  if (job.state == client::JobState::kSucceeded) return absl::OkStatus();
  const std::string id = LastSegment(job.name);
  if (job.state == client::JobState::kCancelled) {
    return absl::CancelledError(absl::StrCat("job ", id, " was cancelled"));
  }
  for (const Layer& layer : job.layers) {
    if (layer.state != LayerState::kFailed) continue;
    return absl::Status(
        layer.error.ok() ? absl::StatusCode::kUnknown : layer.error.code(),
        absl::StrCat("job ", id, ": layer ", layer.layer_id, " failed: ", layer.error.message()));
  }
  return absl::UnknownError(absl::StrCat("job ", id, " ended as ", NameOf(job.state)));
}

}  // namespace quantd::cli
