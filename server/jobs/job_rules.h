#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/backend/backend.h"
#include "server/store/records.h"

// What makes a job acceptable, and what its state follows from. Pure functions.
namespace quantd::server {

struct JobLimits {
  int64_t max_dimension = int64_t{1} << 20;
  int64_t max_weight_bytes = int64_t{8} << 30;
  int max_layers_per_job = 4096;
  int64_t max_layer_bytes = int64_t{16} << 30;  // peak device memory of one fusion group
  double max_layer_seconds = 0.0;  // device seconds of one fusion group, estimated; 0: no limit
};

// A statistic that a layer reads, and the field of the API's Layer that names it: "statistic",
// "second_moment_hat", "cross_moment" or "residual_moment".
struct StatisticUse {
  absl::string_view field;
  std::string statistic_id;
};
// Those that a layer names, in that order.
std::vector<StatisticUse> StatisticsOf(const LayerRecord& layer);

// Layers that are quantized together: a fusion group, or one layer by itself.
struct LayerGroup {
  std::string key;                       // unique in the job
  std::vector<StatisticUse> statistics;  // the same for every member
  std::vector<size_t> members;           // indices into JobRecord::layers
  int64_t rows = 0;                      // of all members
  int64_t cols = 0;
};
std::vector<LayerGroup> GroupsOf(const JobRecord& job);

struct JobEstimate {
  int64_t peak_bytes = 0;
  double device_seconds = 0.0;
  int64_t output_bytes = 0;
};

// Resolves the recipes and checks everything about a new job: names, sizes, geometry, fusion
// groups, memory and that `backend` can run it. INVALID_ARGUMENT names the field
// ("layers[2].cols"), RESOURCE_EXHAUSTED a limit, UNIMPLEMENTED what this build lacks.
absl::StatusOr<JobEstimate> PrepareJob(JobRecord& job, const JobLimits& limits,
                                       const compute::Backend& backend);

// Whether a statistic is what layer `index` of the job needs it to be: kind, shape and layout.
// INVALID_ARGUMENT names the field.
absl::Status CheckStatistic(const LayerRecord& layer, size_t index, const StatisticUse& use,
                            const compute::MomentSpec& spec);

// State, finished_layers and end_time from the layers' states.
void DeriveJobState(JobRecord& job, absl::Time now);

}  // namespace quantd::server
