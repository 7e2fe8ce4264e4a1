#include "server/jobs/job_plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compute/pipeline/allocate.h"
#include "server/errors/error.h"
#include "server/jobs/job_rules.h"

namespace quantd::server {
namespace {

using Figures = std::map<std::string, MeasuredFigures>;

// Candidates for the same weights.
struct Unit {
  std::vector<std::string> weights;             // blobs, sorted
  std::vector<std::vector<size_t>> candidates;  // layers of each, in the order of `weights`
  std::vector<size_t> first;                    // layers of the first, in the order of the job
  std::vector<const compute::Recipe*> recipes;  // of each candidate
};

std::string NameOf(const JobRecord& job) {
  return absl::StrCat("tenants/", job.tenant, "/jobs/", job.job_id);
}

absl::Status CheckEnded(const JobRecord& job) {
  std::vector<std::string> unfinished;
  for (const LayerRecord& layer : job.layers) {
    if (!HasEnded(layer.state)) unfinished.push_back(layer.layer_id);
  }
  if (unfinished.empty()) return absl::OkStatus();
  const size_t count = unfinished.size();
  unfinished.resize(std::min<size_t>(count, 3));
  return FailedPrecondition(
      "CANDIDATES_UNFINISHED", NameOf(job),
      absl::StrCat(count, " of its ", job.layers.size(), " layers have not ended, such as ",
                   absl::StrJoin(unfinished, ", ")));
}

// A name for the weight of a layer, whether it ever arrived or not.
std::string WeightOf(const LayerRecord& layer) {
  return layer.weight.name.empty() ? absl::StrCat("missing/", layer.layer_id) : layer.weight.name;
}

absl::StatusOr<std::vector<Unit>> UnitsOf(const JobRecord& job) {
  std::vector<Unit> units;
  std::map<std::vector<std::string>, size_t> by_weights;
  std::map<std::string, size_t> unit_of_weight;
  for (const LayerGroup& group : GroupsOf(job)) {
    std::vector<size_t> members = group.members;
    std::sort(members.begin(), members.end(), [&](size_t a, size_t b) {
      return WeightOf(job.layers[a]) < WeightOf(job.layers[b]);
    });
    std::vector<std::string> weights;
    for (const size_t index : members) weights.push_back(WeightOf(job.layers[index]));
    const auto [found, is_new] = by_weights.try_emplace(weights, units.size());
    if (is_new) units.push_back({weights, {}, group.members, {}});
    for (size_t i = 0; is_new && i < weights.size(); ++i) {
      if (unit_of_weight.try_emplace(weights[i], found->second).second) continue;
      return FailedPrecondition(
          "CANDIDATES_OVERLAP", NameOf(job),
          absl::StrCat("the weight of layer ", job.layers[members[i]].layer_id,
                       " is in several fusion groups of different weights, or twice in one; the "
                       "candidates for it must be for the same weights"));
    }
    units[found->second].candidates.push_back(std::move(members));
    units[found->second].recipes.push_back(&job.layers[group.members.front()].recipe);
  }
  return units;
}

// Leaves out what was not measured.
int DropFailed(const JobRecord& job, const Figures& figures, Unit& unit) {
  const auto measured = [&](const std::vector<size_t>& members) {
    return std::all_of(members.begin(), members.end(), [&](size_t index) {
      const LayerRecord& layer = job.layers[index];
      return layer.state == LayerState::kSucceeded && figures.contains(layer.layer_id);
    });
  };
  std::vector<std::vector<size_t>> candidates;
  std::vector<const compute::Recipe*> recipes;
  int dropped = 0;
  for (size_t c = 0; c < unit.candidates.size(); ++c) {
    if (!measured(unit.candidates[c])) {
      ++dropped;
      continue;
    }
    candidates.push_back(std::move(unit.candidates[c]));
    recipes.push_back(unit.recipes[c]);
  }
  unit.candidates = std::move(candidates);
  unit.recipes = std::move(recipes);
  return dropped;
}

std::string JsonWithoutRate(compute::Recipe recipe) {
  recipe.rate_bits = 0;
  return compute::ToJson(recipe);
}

bool DiffersInRateAlone(const Unit& unit) {
  const std::string first = JsonWithoutRate(*unit.recipes.front());
  return std::all_of(unit.recipes.begin(), unit.recipes.end(), [&](const auto* recipe) {
    return recipe->method == compute::Method::kWaterSic && JsonWithoutRate(*recipe) == first;
  });
}

int64_t ParametersOf(const LayerRecord& layer) { return layer.rows * layer.cols; }

compute::RateCurve CurveOf(const JobRecord& job, const Figures& figures, const Unit& unit,
                           bool of_outputs, std::map<std::string, int>& options) {
  compute::RateCurve curve;
  curve.continuous = DiffersInRateAlone(unit);
  for (const size_t index : unit.first) {
    curve.parameters += static_cast<double>(ParametersOf(job.layers[index]));
  }
  for (size_t c = 0; c < unit.candidates.size(); ++c) {
    compute::RatePoint point;
    point.option =
        options.try_emplace(compute::ToJson(*unit.recipes[c]), static_cast<int>(options.size()))
            .first->second;
    for (const size_t index : unit.candidates[c]) {
      const LayerRecord& layer = job.layers[index];
      const MeasuredFigures& measured = figures.at(layer.layer_id);
      const double share = static_cast<double>(ParametersOf(layer)) / curve.parameters;
      point.bits += share * measured.bits_per_weight;
      point.error += share * (of_outputs ? *measured.output_error : measured.weight_error);
    }
    curve.points.push_back(point);
  }
  return curve;
}

compute::Recipe RecipeOf(const Unit& unit, const compute::RateChoice& choice) {
  compute::Recipe recipe = *unit.recipes[choice.low];
  if (choice.low != choice.high) {
    // What was asked for and what was measured differ a little; so the request lies at the same
    // fraction of the way as the bits.
    const double high = unit.recipes[choice.high]->rate_bits;
    recipe.rate_bits += choice.fraction * (high - recipe.rate_bits);
  }
  return recipe;
}

// The weight of `layer` as the candidate takes it.
size_t MemberOf(const JobRecord& job, const std::vector<size_t>& candidate,
                const LayerRecord& layer) {
  return *std::find_if(candidate.begin(), candidate.end(), [&](size_t index) {
    return WeightOf(job.layers[index]) == WeightOf(layer);
  });
}

JobPlan Assemble(const JobRecord& job, const std::vector<Unit>& units,
                 const compute::RatePlan& rates) {
  JobPlan plan;
  std::map<size_t, PlannedWeight> by_layer;  // in the order of the job
  for (size_t u = 0; u < units.size(); ++u) {
    const compute::RateChoice& choice = rates.best.choices[u];
    for (const size_t index : units[u].first) {
      const LayerRecord& layer = job.layers[index];
      PlannedWeight weight;
      weight.weight_of =
          layer.weight_of.empty() ? absl::StrCat(job.job_id, "/", layer.layer_id) : layer.weight_of;
      weight.candidate_id =
          job.layers[MemberOf(job, units[u].candidates[choice.low], layer)].layer_id;
      weight.parameters = ParametersOf(layer);
      weight.recipe = RecipeOf(units[u], choice);
      weight.bits_per_weight = choice.bits;
      weight.error = choice.error;
      if (rates.uniform.has_value()) weight.uniform_error = rates.uniform->choices[u].error;
      plan.parameters += weight.parameters;
      by_layer.emplace(index, std::move(weight));
    }
  }
  for (auto& [index, weight] : by_layer) plan.weights.push_back(std::move(weight));
  plan.bits_per_weight = rates.best.bits;
  plan.error = rates.best.error;
  if (rates.uniform.has_value()) {
    plan.uniform_bits_per_weight = rates.uniform->bits;
    plan.uniform_error = rates.uniform->error;
  }
  plan.slope = rates.slope;
  plan.error_bound = rates.error_bound;
  return plan;
}

}  // namespace

absl::StatusOr<JobPlan> PlanJob(const JobRecord& job, const Figures& figures,
                                double bits_per_weight) {
  if (absl::Status s = CheckEnded(job); !s.ok()) return s;
  absl::StatusOr<std::vector<Unit>> units = UnitsOf(job);
  if (!units.ok()) return units.status();
  int failed = 0;
  bool of_outputs = true;
  for (Unit& unit : *units) {
    failed += DropFailed(job, figures, unit);
    if (unit.candidates.empty()) {
      return FailedPrecondition(
          "NO_CANDIDATE", NameOf(job),
          absl::StrCat("no candidate for the weight of layer ",
                       job.layers[unit.first.front()].layer_id, " has succeeded"));
    }
    for (const std::vector<size_t>& candidate : unit.candidates) {
      for (const size_t index : candidate) {
        of_outputs = of_outputs && figures.at(job.layers[index].layer_id).output_error.has_value();
      }
    }
  }
  std::vector<compute::RateCurve> curves;
  std::map<std::string, int> options;
  for (const Unit& unit : *units) {
    curves.push_back(CurveOf(job, figures, unit, of_outputs, options));
  }
  const absl::StatusOr<compute::RatePlan> rates = compute::AllocateRates(curves, bits_per_weight);
  if (!rates.ok()) return rates.status();
  JobPlan plan = Assemble(job, *units, *rates);
  const compute::RateRange range = compute::ReachableRates(curves);
  plan.least_bits_per_weight = range.least;
  plan.most_bits_per_weight = range.most;
  plan.of_outputs = of_outputs;
  plan.failed_candidates = failed;
  return plan;
}

}  // namespace quantd::server
