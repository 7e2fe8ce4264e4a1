#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "compute/recipe/recipe.h"
#include "compute/second_moment/second_moment.h"
#include "compute/tensor/dtype.h"

// What the stores keep. Plain values; the tenant is part of every key.
namespace quantd::server {

// A stored byte string: `name` in the blob store with the size and SHA-256 it was committed with.
struct BlobRef {
  std::string name;  // empty: none
  int64_t size = 0;
  std::string sha256;  // 32 bytes
  friend bool operator==(const BlobRef&, const BlobRef&) = default;
};

enum class LayerState { kWaiting, kQueued, kRunning, kSucceeded, kFailed, kCancelled };
inline bool HasEnded(LayerState s) {
  return s == LayerState::kSucceeded || s == LayerState::kFailed || s == LayerState::kCancelled;
}

struct LayerRecord {
  std::string layer_id;
  int64_t rows = 0;
  int64_t cols = 0;
  compute::DType dtype = compute::DType::kF32;
  std::string fusion_group;
  std::string statistic_id;  // empty: no calibration
  // Further statistics; empty: none.
  std::string second_moment_hat_id;
  std::string cross_moment_id;
  std::string residual_moment_id;
  compute::Recipe recipe;       // resolved
  bool has_own_recipe = false;  // differs from the job's
  LayerState state = LayerState::kWaiting;
  absl::Status error;  // kFailed
  double device_seconds = 0.0;
  int64_t upload_committed = 0;  // durable bytes of the staging file
  std::string upload_staging;    // name in the blob store while incomplete; empty before begin
  BlobRef weight;                // once complete
  std::string weight_of;         // "{job_id}/{layer_id}" that `weight` was taken from; or empty
  friend bool operator==(const LayerRecord&, const LayerRecord&) = default;
};

enum class JobState { kAccepting, kQueued, kRunning, kSucceeded, kFailed, kCancelled };
inline bool HasEnded(JobState s) {
  return s == JobState::kSucceeded || s == JobState::kFailed || s == JobState::kCancelled;
}

enum class Priority { kLow, kNormal, kHigh };

// Device seconds that a tenant has used, counted for the day on which the work started.
struct DeviceUse {
  int64_t day = 0;  // since 1970, UTC
  double seconds = 0.0;
};

struct JobRecord {
  std::string tenant;
  std::string job_id;
  std::string display_name;
  std::string request_id;  // empty: none
  compute::Recipe recipe;  // resolved
  absl::Time create_time;
  std::optional<absl::Time> end_time;
  JobState state = JobState::kAccepting;
  int finished_layers = 0;
  Priority priority = Priority::kNormal;
  std::optional<absl::Time> deadline;
  std::vector<LayerRecord> layers;  // as given; empty in lists
};

struct ArtifactRecord {
  std::string artifact_id;  // {layer_id}.safetensors, {layer_id}.report.json
  std::string layer_id;
  BlobRef blob;
  absl::Time create_time;
};

struct StatisticStreamRecord {
  std::string stream_id;
  compute::DType dtype = compute::DType::kBF16;
  int64_t durable_seq = 0;
  int64_t tokens = 0;
  BlobRef snapshot;  // SecondMoment of chunks 1 .. durable_seq
  // CRC-32C of the last durable chunks, ending with durable_seq (at most kRememberedCrcs): a
  // resent chunk with another CRC is refused. Of a chunk with weights or paired data: of all of it.
  static constexpr int kRememberedCrcs = 4096;
  std::vector<uint32_t> recent_crcs;
};

struct StatisticRecord {
  std::string tenant;
  std::string statistic_id;
  compute::MomentSpec spec;
  bool sealed = false;
  int64_t tokens = 0;  // once sealed
  std::string digest;  // once sealed, hex
  BlobRef moment;      // once sealed: the merged SecondMoment
  absl::Time create_time;
  std::vector<StatisticStreamRecord> streams;  // by stream_id
};

}  // namespace quantd::server
