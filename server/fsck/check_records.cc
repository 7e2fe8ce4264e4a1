#include "server/fsck/check_records.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "server/jobs/job_rules.h"

namespace quantd::server {
namespace {

int64_t WeightBytes(const LayerRecord& layer) {
  return layer.rows * layer.cols * static_cast<int64_t>(compute::SizeOf(layer.dtype));
}

void CheckUpload(const LayerRecord& layer, const std::string& name,
                 std::vector<std::string>& wrong) {
  const int64_t bytes = WeightBytes(layer);
  const bool complete = !layer.weight.name.empty();
  if (layer.upload_committed < 0 || layer.upload_committed > bytes) {
    wrong.push_back(
        absl::StrCat(name, " has ", layer.upload_committed, " durable bytes of ", bytes));
  }
  if (complete && layer.weight.size != bytes) {
    wrong.push_back(
        absl::StrCat(name, " has a weight of ", layer.weight.size, " bytes, declared ", bytes));
  }
  if (complete && (layer.upload_committed != bytes || !layer.upload_staging.empty())) {
    wrong.push_back(absl::StrCat(name, " is complete and being uploaded at once"));
  }
  if (!complete && layer.upload_staging.empty() && layer.upload_committed > 0) {
    wrong.push_back(
        absl::StrCat(name, " has ", layer.upload_committed, " durable bytes and no staging file"));
  }
  const bool needs = layer.state == LayerState::kQueued || layer.state == LayerState::kRunning;
  if (needs && !complete) wrong.push_back(absl::StrCat(name, " runs without its weight"));
}

}  // namespace

std::vector<std::string> CheckJob(const JobRecord& job,
                                  const std::vector<ArtifactRecord>& artifacts) {
  std::vector<std::string> wrong;
  std::set<std::string> present;
  for (const ArtifactRecord& artifact : artifacts) present.insert(artifact.artifact_id);
  size_t expected = 0;
  for (const LayerRecord& layer : job.layers) {
    const std::string name = absl::StrCat("layer ", layer.layer_id);
    CheckUpload(layer, name, wrong);
    if ((layer.state == LayerState::kFailed) == layer.error.ok()) {
      wrong.push_back(
          absl::StrCat(name, layer.error.ok() ? " failed without" : " has", " an error"));
    }
    if (layer.state != LayerState::kSucceeded) continue;
    for (const char* suffix : {".safetensors", ".report.json"}) {
      ++expected;
      if (!present.contains(layer.layer_id + suffix)) {
        wrong.push_back(absl::StrCat(name, " succeeded without ", layer.layer_id, suffix));
      }
    }
  }
  if (present.size() > expected) {
    wrong.push_back(absl::StrCat("it has ", present.size(), " artifacts, its layers ", expected));
  }
  JobRecord derived = job;
  DeriveJobState(derived, absl::UnixEpoch());
  if (derived.state != job.state || derived.finished_layers != job.finished_layers) {
    wrong.push_back(absl::StrCat("its state or its ", job.finished_layers,
                                 " finished layers do not follow from the layers"));
  }
  if (job.end_time.has_value() != HasEnded(job.state)) {
    wrong.emplace_back("its end time does not go with its state");
  }
  return wrong;
}

std::vector<std::string> CheckStatistic(const StatisticRecord& statistic) {
  std::vector<std::string> wrong;
  if (absl::Status status = statistic.spec.Validate(); !status.ok()) {
    wrong.push_back(absl::StrCat("its shape makes no sense: ", status.message()));
  }
  if (statistic.sealed != !statistic.moment.name.empty()) {
    wrong.emplace_back(statistic.sealed ? "it is sealed and has no moment"
                                        : "it is open and has a moment");
  }
  int64_t tokens = 0;
  for (const StatisticStreamRecord& stream : statistic.streams) {
    const std::string name = absl::StrCat("stream ", stream.stream_id);
    tokens += stream.tokens;
    if (stream.snapshot.name.empty() != statistic.sealed) {
      wrong.push_back(absl::StrCat(
          name, statistic.sealed ? " is sealed and has a snapshot" : " has no snapshot"));
    }
    const int64_t remembered =
        std::min<int64_t>(stream.durable_seq, StatisticStreamRecord::kRememberedCrcs);
    if (stream.durable_seq < 1 || stream.tokens < stream.durable_seq ||
        static_cast<int64_t>(stream.recent_crcs.size()) != remembered) {
      wrong.push_back(absl::StrCat(name, " has ", stream.durable_seq, " chunks of ", stream.tokens,
                                   " tokens and remembers ", stream.recent_crcs.size()));
    }
  }
  if (statistic.sealed && !statistic.streams.empty() && tokens != statistic.tokens) {
    wrong.push_back(
        absl::StrCat("it is sealed with ", statistic.tokens, " tokens, its streams had ", tokens));
  }
  return wrong;
}

std::vector<std::string> CheckSnapshot(const StatisticRecord& statistic,
                                       const StatisticStreamRecord& stream,
                                       const compute::SecondMoment& snapshot) {
  std::vector<std::string> wrong;
  if (!(snapshot.spec() == statistic.spec)) {
    wrong.push_back(
        absl::StrCat("the snapshot of stream ", stream.stream_id, " has another shape"));
  }
  if (snapshot.tokens() != stream.tokens) {
    wrong.push_back(absl::StrCat("the snapshot of stream ", stream.stream_id, " has ",
                                 snapshot.tokens(), " tokens, ", stream.tokens,
                                 " are durable with chunk ", stream.durable_seq));
  }
  return wrong;
}

std::vector<std::string> CheckMoment(const StatisticRecord& statistic,
                                     const compute::SecondMoment& moment) {
  if (moment.spec() == statistic.spec && moment.tokens() == statistic.tokens &&
      moment.DigestHex() == statistic.digest) {
    return {};
  }
  return {absl::StrCat("its moment has ", moment.tokens(), " tokens and digest ",
                       moment.DigestHex(), ", it was sealed with ", statistic.tokens, " and ",
                       statistic.digest, ", or has another shape")};
}

}  // namespace quantd::server
