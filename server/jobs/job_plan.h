#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/recipe/recipe.h"
#include "server/store/records.h"

// Which recipe each weight gets within a budget of bits, from what the layers of a job measured.
// Pure functions; the arithmetic is compute/pipeline/allocate.h.
namespace quantd::server {

// Figures of a layer's error report.
struct MeasuredFigures {
  double bits_per_weight = 0;
  std::optional<double> output_error;  // relative_output_error_weight_only
  double weight_error = 0;             // relative_weight_error
};

struct PlannedWeight {
  std::string weight_of;     // "{job_id}/{layer_id}" whose weight it is
  std::string candidate_id;  // layer of the measuring job: the chosen one or of the next lower rate
  int64_t parameters = 0;
  compute::Recipe recipe;
  // Of the weight, or the means of its fusion group.
  double bits_per_weight = 0;
  double error = 0;
  std::optional<double> uniform_error;
};

struct JobPlan {
  std::vector<PlannedWeight> weights;  // in the order of the job
  int64_t parameters = 0;
  // Means over all parameters.
  double bits_per_weight = 0;
  double error = 0;
  std::optional<double> uniform_bits_per_weight;
  std::optional<double> uniform_error;
  double slope = 0;
  double error_bound = 0;
  double least_bits_per_weight = 0;
  double most_bits_per_weight = 0;
  // Errors are of outputs; of weights where a candidate's output error could not be measured.
  bool of_outputs = true;
  int failed_candidates = 0;
};

// Fusion groups (or single layers) over the same weights are candidates for these. Those of which a
// layer failed or was cancelled are left out. `figures`: of every succeeded layer, by layer_id.
// Rates between candidates may be planned where these differ in WaterSIC's rate alone.
// FAILED_PRECONDITION: a candidate has not ended, a weight has no succeeded one, or fusion groups
// overlap; OUT_OF_RANGE: the budget.
absl::StatusOr<JobPlan> PlanJob(const JobRecord& job,
                                const std::map<std::string, MeasuredFigures>& figures,
                                double bits_per_weight);

}  // namespace quantd::server
