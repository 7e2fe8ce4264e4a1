#include "client/cpp/candidates.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace quantd::client {
namespace {

using compute::Method;
using compute::Recipe;

struct Candidate {
  std::string label;
  Recipe recipe;
};

bool HasRates(Method method) { return method == Method::kWaterSic || method == Method::kHiggs; }

Recipe WithFormat(const Recipe& own, compute::Format format, const CandidateOptions& options) {
  Recipe recipe = own;
  recipe.method = options.method.value_or(HasRates(own.method) ? Method::kRtn : own.method);
  recipe.transform = options.transform.value_or(own.transform);
  if (recipe.method != Method::kGptq) recipe.gptq = {};
  if (HasRates(own.method)) {
    recipe.damping.reset();
    recipe.rate_bits = 0;
    recipe.grid_dimension = 0;
  }
  if (recipe.transform != own.transform) recipe.transform_block_size = 0;
  if (format != own.format) {
    // What was chosen for another format gives way to the defaults of this one.
    recipe.format = format;
    recipe.scale_rule.reset();
    recipe.granularity.reset();
    recipe.group_size = 0;
    recipe.transform_block_size = 0;
  }
  return recipe;
}

Recipe WithRate(const Recipe& own, Method method, double rate) {
  Recipe recipe;
  if (own.method == method) recipe = own;
  recipe.method = method;
  recipe.format = *compute::ImpliedFormat(method);
  recipe.rate_bits = rate;
  return recipe;
}

std::vector<Candidate> CandidatesFor(const Recipe& own, const CandidateOptions& options,
                                     const std::vector<double>& rates) {
  std::vector<Candidate> candidates;
  if (options.method.has_value() && HasRates(*options.method)) {
    for (const double rate : rates) {
      candidates.push_back({absl::StrFormat("%s-%g", NameOf(*options.method), rate),
                            WithRate(own, *options.method, rate)});
    }
    return candidates;
  }
  for (const compute::Format format : options.formats) {
    candidates.push_back({std::string(NameOf(format)), WithFormat(own, format, options)});
  }
  return candidates;
}

absl::Status CheckOptions(const CandidateOptions& options) {
  const bool by_rate = options.method.has_value() && HasRates(*options.method);
  if (by_rate && !options.formats.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("formats: expected none with ", NameOf(*options.method),
                     ", which has its own, got ", options.formats.size()));
  }
  if (!by_rate && options.formats.empty()) {
    return absl::InvalidArgumentError(
        "formats: expected at least one, or method watersic or higgs, got none");
  }
  if (!by_rate && !options.rates.empty()) {
    return absl::InvalidArgumentError("rates: expected none without method watersic or higgs");
  }
  if (std::set(options.formats.begin(), options.formats.end()).size() != options.formats.size() ||
      std::set(options.rates.begin(), options.rates.end()).size() != options.rates.size()) {
    return absl::InvalidArgumentError("candidates: expected each format or rate once");
  }
  return absl::OkStatus();
}

// What a new job asks for to quantize the weight of a layer once more. Statistics that the recipe
// does not read would be refused.
Layer Ask(const Layer& told, Recipe recipe) {
  Layer layer = told;
  if (!compute::ReadsDrift(recipe)) {
    layer.second_moment_hat.clear();
    layer.cross_moment.clear();
  }
  if (!compute::ReadsResidual(recipe)) layer.residual_moment.clear();
  layer.recipe = recipe;
  layer.weight_of = told.name;
  layer.name.clear();
  layer.state = LayerState::kUnspecified;
  layer.error = absl::OkStatus();
  return layer;
}

}  // namespace

std::vector<double> DefaultRates(Method method, double bits_per_weight) {
  if (method == Method::kHiggs) return {2, 3, 4};
  constexpr double kLeast = 0.5;
  constexpr double kMost = 16;
  std::set<double> rates;
  for (const double offset : {-2.0, -1.0, 0.0, 1.0, 2.0}) {
    rates.insert(std::clamp(bits_per_weight + offset, std::min(kLeast, bits_per_weight), kMost));
  }
  return {rates.begin(), rates.end()};
}

absl::StatusOr<JobSpec> MeasuringJob(const Job& source, const CandidateOptions& options,
                                     double bits_per_weight) {
  if (absl::Status s = CheckOptions(options); !s.ok()) return s;
  std::vector<double> rates = options.rates;
  if (rates.empty() && options.method.has_value() && HasRates(*options.method)) {
    rates = DefaultRates(*options.method, bits_per_weight);
  }
  JobSpec spec;
  spec.display_name = absl::StrCat("candidates for ", source.name).substr(0, 200);
  spec.recipe = source.recipe;
  for (const Layer& layer : source.layers) {
    for (Candidate& candidate :
         CandidatesFor(layer.recipe.value_or(source.recipe), options, rates)) {
      Layer measured = Ask(layer, candidate.recipe);
      absl::StrAppend(&measured.layer_id, ".", candidate.label);
      if (!measured.fusion_group.empty()) {
        absl::StrAppend(&measured.fusion_group, ".", candidate.label);
      }
      spec.layers.push_back(std::move(measured));
    }
  }
  return spec;
}

absl::StatusOr<JobSpec> PlannedJob(const Job& source, const Plan& plan) {
  std::map<std::string, const PlannedLayer*> planned;
  for (const PlannedLayer& layer : plan.layers) planned[layer.layer] = &layer;
  JobSpec spec;
  spec.display_name = absl::StrCat("planned from ", source.name).substr(0, 200);
  spec.recipe = source.recipe;
  for (const Layer& layer : source.layers) {
    const auto found = planned.find(layer.name);
    if (found == planned.end()) {
      return absl::InvalidArgumentError(absl::StrCat("plan: expected a choice for ", layer.name));
    }
    spec.layers.push_back(Ask(layer, found->second->recipe));
  }
  return spec;
}

}  // namespace quantd::client
