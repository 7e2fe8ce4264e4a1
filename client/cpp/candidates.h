#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/client.h"
#include "client/cpp/resources.h"
#include "compute/recipe/recipe.h"

// Jobs around a plan: one that measures candidates for the weights of an earlier job, and one that
// does what the plan says. Pure functions.
namespace quantd::client {

// What to try for every weight.
struct CandidateOptions {
  // Number formats, each with the transform and method of the layer's recipe (RTN where that is no
  // method for number formats). Not read with WATERSIC and HIGGS.
  std::vector<compute::Format> formats = {};
  // Overrides the layers' own.
  std::optional<compute::Method> method = std::nullopt;
  std::optional<compute::TransformKind> transform = std::nullopt;
  // Of WATERSIC and HIGGS. Empty: DefaultRates.
  std::vector<double> rates = {};
};

// Rates around a budget; HIGGS has only three.
std::vector<double> DefaultRates(compute::Method method, double bits_per_weight);

// Every layer of `source` with each candidate recipe: "{layer_id}.{format}" or
// "{layer_id}.{method}-{rate}", on the weights that `source` has. INVALID_ARGUMENT where the
// options do not fit each other.
absl::StatusOr<JobSpec> MeasuringJob(const Job& source, const CandidateOptions& options,
                                     double bits_per_weight);

// The layers of `source` with the recipes of the plan. INVALID_ARGUMENT where the plan has none for
// a layer.
absl::StatusOr<JobSpec> PlannedJob(const Job& source, const Plan& plan);

}  // namespace quantd::client
