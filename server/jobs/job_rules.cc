#include "server/jobs/job_rules.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "compute/pipeline/pipeline.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

std::string Field(size_t index, absl::string_view name) {
  return absl::StrCat("job.layers[", index, "].", name);
}

absl::Status CheckDimension(size_t index, absl::string_view name, int64_t value, int64_t most) {
  if (value >= 1 && value <= most) return absl::OkStatus();
  return InvalidField(Field(index, name), absl::StrFormat("expected 1..%d, got %d", most, value));
}

absl::Status CheckShape(const LayerRecord& layer, size_t index, const JobLimits& limits) {
  if (absl::Status s = CheckDimension(index, "rows", layer.rows, limits.max_dimension); !s.ok()) {
    return s;
  }
  if (absl::Status s = CheckDimension(index, "cols", layer.cols, limits.max_dimension); !s.ok()) {
    return s;
  }
  const absl::StatusOr<int64_t> bytes = compute::DenseBytes(layer.dtype, {layer.rows, layer.cols});
  if (!bytes.ok()) return InvalidField(Field(index, "rows"), bytes.status());
  if (*bytes > limits.max_weight_bytes) {
    return InvalidField(Field(index, "rows"),
                        absl::StrFormat("the weight takes %d bytes, at most %d are allowed "
                                        "(limits.max_weight_bytes)",
                                        *bytes, limits.max_weight_bytes));
  }
  return absl::OkStatus();
}

// Which statistics the recipe needs and reads: ignoring one would give another result than its
// owner thinks.
absl::Status CheckUses(const LayerRecord& layer, size_t index) {
  const compute::Recipe& recipe = layer.recipe;
  const absl::string_view method = compute::NameOf(recipe.method);
  const auto needed = [&](absl::string_view field, absl::string_view by) {
    return InvalidField(Field(index, field),
                        absl::StrFormat("expected a statistic, which %s needs, got none", by));
  };
  const bool has_hat = !layer.second_moment_hat_id.empty();
  const bool has_cross = !layer.cross_moment_id.empty();
  for (const StatisticUse& use : StatisticsOf(layer)) {
    if (use.field == "statistic") continue;
    const bool is_residual = use.field == "residual_moment";
    if (is_residual ? compute::ReadsResidual(recipe) : compute::ReadsDrift(recipe)) continue;
    return InvalidField(Field(index, use.field),
                        absl::StrFormat("expected none: method %s%s does not read it", method,
                                        recipe.method == compute::Method::kGptq && !is_residual
                                            ? " without its asymmetric term"
                                            : ""));
  }
  if (compute::NeedsDrift(recipe) && !has_hat && !has_cross) {
    return needed("second_moment_hat", "the asymmetric term of gptq");
  }
  if (has_hat && !has_cross) return needed("cross_moment", "second_moment_hat");
  if (has_cross && !has_hat) return needed("second_moment_hat", "cross_moment");
  return absl::OkStatus();
}

absl::Status PrepareLayer(LayerRecord& layer, size_t index, const JobLimits& limits,
                          const compute::Backend& backend) {
  if (!compute::IsFloat(layer.dtype)) {
    return InvalidField(Field(index, "dtype"), "expected F64, F32, F16 or BF16");
  }
  if (absl::Status s = CheckShape(layer, index, limits); !s.ok()) return s;
  const std::string recipe_field =
      layer.has_own_recipe ? Field(index, "recipe") : std::string("job.recipe");
  const absl::StatusOr<compute::Recipe> resolved = compute::ResolveRecipe(layer.recipe);
  if (!resolved.ok()) return InvalidFieldWithin(recipe_field, resolved.status());
  layer.recipe = *resolved;
  if (absl::Status s = CheckUses(layer, index); !s.ok()) return s;
  if (absl::Status s = compute::CheckRunnable(backend, layer.recipe); !s.ok())
    return Annotate(s, recipe_field);
  if (absl::Status s = compute::CheckGeometry(layer.recipe, layer.rows, layer.cols); !s.ok()) {
    return InvalidField(Field(index, "cols"), s);
  }
  if (compute::NeedsSecondMoment(layer.recipe) && layer.statistic_id.empty()) {
    return InvalidField(Field(index, "statistic"),
                        absl::StrCat("expected a statistic, which transform ",
                                     compute::NameOf(layer.recipe.transform), " with method ",
                                     compute::NameOf(layer.recipe.method), " needs, got none"));
  }
  return absl::OkStatus();
}

// The members of a fusion group share one input, so everything about the input must agree.
absl::Status CheckFusion(const JobRecord& job, const LayerGroup& group) {
  const LayerRecord& first = job.layers[group.members.front()];
  for (const size_t index : group.members) {
    const LayerRecord& layer = job.layers[index];
    const auto differs = [&](absl::string_view field) {
      return InvalidField(Field(index, field),
                          absl::StrFormat("expected the same as layer %s of fusion group %s",
                                          first.layer_id, layer.fusion_group));
    };
    if (layer.cols != first.cols) return differs("cols");
    if (layer.statistic_id != first.statistic_id) return differs("statistic");
    if (layer.second_moment_hat_id != first.second_moment_hat_id) {
      return differs("second_moment_hat");
    }
    if (layer.cross_moment_id != first.cross_moment_id) return differs("cross_moment");
    if (!layer.residual_moment_id.empty() && group.members.size() > 1) {
      return InvalidField(
          Field(index, "residual_moment"),
          absl::StrFormat("expected none in a fusion group of %d layers: a residual "
                          "moment is of one layer's outputs",
                          group.members.size()));
    }
    if (compute::ToJson(layer.recipe) != compute::ToJson(first.recipe)) return differs("recipe");
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<StatisticUse> StatisticsOf(const LayerRecord& layer) {
  std::vector<StatisticUse> uses = {{"statistic", layer.statistic_id},
                                    {"second_moment_hat", layer.second_moment_hat_id},
                                    {"cross_moment", layer.cross_moment_id},
                                    {"residual_moment", layer.residual_moment_id}};
  std::erase_if(uses, [](const StatisticUse& use) { return use.statistic_id.empty(); });
  return uses;
}

absl::Status CheckStatistic(const LayerRecord& layer, size_t index, const StatisticUse& use,
                            const compute::MomentSpec& spec) {
  using compute::MomentKind;
  const std::string field = Field(index, use.field);
  const bool is_cross = use.field == "cross_moment";
  const bool is_residual = use.field == "residual_moment";
  const bool fits = is_cross      ? spec.kind == MomentKind::kCross
                    : is_residual ? spec.kind == MomentKind::kResidual
                                  : !spec.is_paired();
  if (!fits) {
    return InvalidField(field, absl::StrFormat("expected a statistic of kind %s, got %s",
                                               is_cross      ? "CROSS_MOMENT"
                                               : is_residual ? "RESIDUAL_MOMENT"
                                                             : "SECOND_MOMENT or WEIGHTED",
                                               compute::NameOf(spec.kind)));
  }
  if (spec.cols != layer.cols) {
    return InvalidField(field, absl::StrFormat("expected one of %d columns, as the layer has, "
                                               "got one of %d",
                                               layer.cols, spec.cols));
  }
  if (is_residual && spec.paired_cols != layer.rows) {
    return InvalidField(field, absl::StrFormat("expected one of %d paired columns, the rows of the "
                                               "layer, got one of %d",
                                               layer.rows, spec.paired_cols));
  }
  if (spec.layout == compute::MomentLayout::kFull) return absl::OkStatus();
  if (use.field != "statistic" || compute::NeedsFullSecondMoment(layer.recipe)) {
    return InvalidField(field,
                        "expected a full second moment, which the recipe needs, got a "
                        "block-diagonal one");
  }
  if (compute::NeedsSecondMoment(layer.recipe) &&
      spec.block_size % layer.recipe.transform_block_size != 0) {
    return InvalidField(field, absl::StrFormat("expected diagonal blocks of a multiple of %d "
                                               "columns (transform_block_size), got %d",
                                               layer.recipe.transform_block_size, spec.block_size));
  }
  return absl::OkStatus();
}

std::vector<LayerGroup> GroupsOf(const JobRecord& job) {
  std::vector<LayerGroup> groups;
  std::map<std::string, size_t> by_key;
  for (size_t i = 0; i < job.layers.size(); ++i) {
    const LayerRecord& layer = job.layers[i];
    const std::string key = layer.fusion_group.empty() ? absl::StrCat("layer/", layer.layer_id)
                                                       : absl::StrCat("group/", layer.fusion_group);
    const auto [found, is_new] = by_key.try_emplace(key, groups.size());
    if (is_new) groups.push_back({key, StatisticsOf(layer), {}, 0, layer.cols});
    LayerGroup& group = groups[found->second];
    group.members.push_back(i);
    group.rows += layer.rows;
  }
  return groups;
}

absl::StatusOr<JobEstimate> PrepareJob(JobRecord& job, const JobLimits& limits,
                                       const compute::Backend& backend) {
  if (job.deadline.has_value() && *job.deadline <= job.create_time) {
    return InvalidField("job.deadline",
                        absl::StrCat("expected a time after ", absl::FormatTime(job.create_time),
                                     ", got ", absl::FormatTime(*job.deadline)));
  }
  if (job.layers.empty())
    return InvalidField("job.layers", "expected at least one layer, got none");
  if (static_cast<int64_t>(job.layers.size()) > limits.max_layers_per_job) {
    return InvalidField("job.layers",
                        absl::StrFormat("expected at most %d (limits."
                                        "max_layers_per_job), got %d",
                                        limits.max_layers_per_job, job.layers.size()));
  }
  std::set<std::string> ids;
  for (size_t i = 0; i < job.layers.size(); ++i) {
    LayerRecord& layer = job.layers[i];
    if (!ids.insert(layer.layer_id).second) {
      return InvalidField(Field(i, "layer_id"), absl::StrCat("expected ids unique in the job, got ",
                                                             layer.layer_id, " twice"));
    }
    if (absl::Status s = PrepareLayer(layer, i, limits, backend); !s.ok()) return s;
  }
  // Also where every layer has its own: it is stored, and a record that cannot be read again would
  // keep the tenant's jobs from being listed and the server from starting.
  const auto resolved = compute::ResolveRecipe(job.recipe);
  if (!resolved.ok()) return InvalidFieldWithin("job.recipe", resolved.status());
  job.recipe = *resolved;
  JobEstimate estimate;
  for (const LayerGroup& group : GroupsOf(job)) {
    if (absl::Status s = CheckFusion(job, group); !s.ok()) return s;
    const LayerRecord& first = job.layers[group.members.front()];
    const compute::LayerEstimate part =
        compute::EstimateLayer(first.recipe, group.rows, group.cols, !first.statistic_id.empty(),
                               backend.Describe().flops_per_second);
    if (part.peak_bytes > limits.max_layer_bytes) {
      return QuotaExceeded("LAYER_TOO_LARGE", Field(group.members.front(), "rows"),
                           absl::StrFormat("quantizing %s needs %d bytes of device memory, at most "
                                           "%d are available (limits.max_layer_bytes)",
                                           group.key, part.peak_bytes, limits.max_layer_bytes),
                           absl::Hours(1));
    }
    if (limits.max_layer_seconds > 0 && part.device_seconds > limits.max_layer_seconds) {
      return QuotaExceeded(
          "LAYER_OVER_QUOTA", Field(group.members.front(), "rows"),
          absl::StrFormat("quantizing %s takes about %.3g device seconds, the "
                          "tenant may use %.3g a day "
                          "(max_device_seconds_per_day)",
                          group.key, part.device_seconds, limits.max_layer_seconds),
          absl::Hours(24));
    }
    estimate.peak_bytes = std::max(estimate.peak_bytes, part.peak_bytes);
    estimate.device_seconds += part.device_seconds;
    estimate.output_bytes += part.output_bytes;
  }
  return estimate;
}

void DeriveJobState(JobRecord& job, absl::Time now) {
  std::map<LayerState, int> count;
  for (const LayerRecord& layer : job.layers) ++count[layer.state];
  const int cancelled = count[LayerState::kCancelled];
  const int failed = count[LayerState::kFailed];
  const int ended = count[LayerState::kSucceeded] + failed + cancelled;
  job.finished_layers = ended;
  if (ended == static_cast<int>(job.layers.size())) {
    job.state = cancelled > 0 ? JobState::kCancelled
                : failed > 0  ? JobState::kFailed
                              : JobState::kSucceeded;
    if (!job.end_time.has_value()) job.end_time = now;
  } else if (count[LayerState::kRunning] > 0) {
    job.state = JobState::kRunning;
  } else if (count[LayerState::kQueued] > 0) {
    job.state = JobState::kQueued;
  } else {
    job.state = JobState::kAccepting;
  }
}

}  // namespace quantd::server
