#include "server/retention/retention.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace quantd::server {
namespace {

// Of one kind in one sweep, so that a sweep stays short; the rest waits for the next one.
constexpr int kAtOnce = 1000;

// What is in use or gone concerns that one thing alone.
bool EndsSweep(const absl::Status& status) {
  return !status.ok() && !absl::IsFailedPrecondition(status) && !absl::IsAborted(status) &&
         !absl::IsNotFound(status);
}

}  // namespace

Retention::Retention(JobStore& jobs, BlobStore& blobs, RetentionPolicy policy,
                     RetentionActions actions)
    : jobs_(jobs), blobs_(blobs), policy_(policy), actions_(std::move(actions)) {}

Retention::~Retention() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    stop_.Signal();
  }
  if (thread_.joinable()) thread_.join();
}

void Retention::Start(absl::Duration interval, std::function<absl::Time()> clock,
                      std::function<void(const absl::Status&)> failed) {
  thread_ = std::thread([this, interval, clock = std::move(clock), failed = std::move(failed)] {
    for (;;) {
      if (absl::Status status = Sweep(clock()); !status.ok()) failed(status);
      absl::MutexLock lock(&mutex_);
      if (!stopping_) stop_.WaitWithTimeout(&mutex_, interval);
      if (stopping_) return;
    }
  });
}

// Jobs first: what they refer to may be free then.
absl::Status Retention::Sweep(absl::Time now) {
  if (absl::Status status = SweepJobs(now); !status.ok()) return status;
  if (absl::Status status = SweepUploads(now); !status.ok()) return status;
  return SweepStatistics(now);
}

absl::Status Retention::SweepJobs(absl::Time now) {
  if (policy_.ended_jobs == absl::InfiniteDuration()) return absl::OkStatus();
  const auto ended = jobs_.JobsEndedBefore(now - policy_.ended_jobs, kAtOnce);
  if (!ended.ok()) return ended.status();
  for (const JobKey& job : *ended) {
    const absl::Status status = actions_.delete_job(job.tenant, job.job_id);
    if (EndsSweep(status)) return status;
    if (status.ok()) actions_.collected("job", job.tenant, job.job_id);
  }
  return absl::OkStatus();
}

absl::Status Retention::SweepUploads(absl::Time now) {
  if (policy_.abandoned_uploads == absl::InfiniteDuration()) return absl::OkStatus();
  const auto unfinished = jobs_.UnfinishedJobs();
  if (!unfinished.ok()) return unfinished.status();
  for (const JobRecord& job : *unfinished) {
    for (const LayerRecord& layer : job.layers) {
      if (layer.upload_staging.empty()) continue;
      const auto staged = blobs_.Describe(layer.upload_staging);
      if (EndsSweep(staged.status())) return staged.status();
      if (!staged.ok() || staged->size == 0) continue;
      if (staged->written + policy_.abandoned_uploads > now) continue;
      const auto freed = actions_.discard_upload(job.tenant, job.job_id, layer.layer_id);
      if (EndsSweep(freed.status())) return freed.status();
      if (freed.ok()) {
        actions_.collected("upload", job.tenant, absl::StrCat(job.job_id, "/", layer.layer_id));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Retention::SweepStatistics(absl::Time now) {
  const absl::Duration least = std::min(policy_.unused_statistics, policy_.abandoned_statistics);
  if (least == absl::InfiniteDuration()) return absl::OkStatus();
  const auto unused = jobs_.UnusedStatistics(now - least, kAtOnce);
  if (!unused.ok()) return unused.status();
  for (const StatisticRecord& statistic : *unused) {
    const absl::Duration keep =
        statistic.sealed ? policy_.unused_statistics : policy_.abandoned_statistics;
    const auto written = LastWritten(statistic);
    if (!written.ok()) return written.status();
    if (*written + keep > now) continue;
    const absl::Status status = actions_.delete_statistic(statistic.tenant, statistic.statistic_id);
    if (EndsSweep(status)) return status;
    if (status.ok()) actions_.collected("statistic", statistic.tenant, statistic.statistic_id);
  }
  return absl::OkStatus();
}

// A moment is written when it is sealed, a snapshot with every commit.
absl::StatusOr<absl::Time> Retention::LastWritten(const StatisticRecord& statistic) const {
  std::vector<std::string> blobs = {statistic.moment.name};
  for (const StatisticStreamRecord& stream : statistic.streams) {
    blobs.push_back(stream.snapshot.name);
  }
  absl::Time last = statistic.create_time;
  for (const std::string& name : blobs) {
    if (name.empty()) continue;
    const auto state = blobs_.Describe(name);
    if (EndsSweep(state.status())) return state.status();
    if (state.ok()) last = std::max(last, state->written);
  }
  return last;
}

}  // namespace quantd::server
