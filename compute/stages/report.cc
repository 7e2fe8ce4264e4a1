#include "compute/stages/report.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace quantd::compute {
namespace {

using Json = nlohmann::ordered_json;

Json Number(std::optional<double> value) {
  return value.has_value() && std::isfinite(*value) ? Json(*value) : Json(nullptr);
}

Json List(const std::vector<ErrorReport::Worst>& worst) {
  Json list = Json::array();
  for (const ErrorReport::Worst& w : worst)
    list.push_back({{"index", w.index}, {"share", w.share}});
  return list;
}

void Flatten(const std::string& name, const ErrorReport::Baseline& baseline, Json& json) {
  json[name + "_relative_output_error_weight_only"] =
      Number(baseline.relative_output_error_weight_only);
  json[name + "_relative_output_error_weight_and_activation"] =
      Number(baseline.relative_output_error_weight_and_activation);
  json[name + "_gain_weight_only"] = Number(baseline.gain_weight_only);
  json[name + "_gain_weight_and_activation"] = Number(baseline.gain_weight_and_activation);
}

void AddErrors(const ErrorReport& r, Json& json) {
  json["relative_output_error_weight_only"] = Number(r.relative_output_error_weight_only);
  json["relative_output_error_weight_and_activation"] =
      Number(r.relative_output_error_weight_and_activation);
  json["sqnr_db_weight_only"] = Number(r.sqnr_db_weight_only);
  json["sqnr_db_weight_and_activation"] = Number(r.sqnr_db_weight_and_activation);
  json["weight_only_measured_on"] =
      r.weight_only_measured_on.empty() ? Json(nullptr) : Json(r.weight_only_measured_on);
  Flatten("baseline_identity_rtn", r.baseline_identity_rtn, json);
  Flatten("baseline_hadamard_rtn", r.baseline_hadamard_rtn, json);
  json["relative_drift_error"] = Number(r.relative_drift_error);
  json["predicted_loss"] = Number(r.predicted_loss);
  json["relative_weight_error"] = Number(r.relative_weight_error);
  json["max_abs_weight_error"] = Number(r.max_abs_weight_error);
  json["worst_rows"] = List(r.worst_rows);
  json["worst_blocks"] = List(r.worst_blocks);
}

void AddTheory(const ErrorReport& r, Json& json) {
  json["waterfilling_limit_bits"] = Number(r.waterfilling_limit_bits);
  json["waterfilling_gap_bits"] = Number(r.waterfilling_gap_bits);
  json["cholesky_am_gm"] = Number(r.cholesky_am_gm);
  json["gptq_predicted_gap_bits"] = Number(r.gptq_predicted_gap_bits);
}

void AddCosts(const ErrorReport& r, Json& json) {
  json["requested_rate_bits"] = Number(r.requested_rate_bits);
  json["entropy_bits"] = Number(r.entropy_bits);
  json["bits_per_weight_codes"] = r.bits_per_weight_codes;
  json["bits_per_weight_scales"] = r.bits_per_weight_scales;
  json["bits_per_weight_transform"] = r.bits_per_weight_transform;
  json["bits_per_weight"] = r.bits_per_weight;
  json["bytes"] = r.bytes;
  json["seconds"] = Json(r.seconds);
  json["device"] = r.device;
  json["peak_bytes"] = r.peak_bytes;
}

}  // namespace

std::string ToJson(const ErrorReport& r) {
  Json json;
  json["layer"] = r.layer;
  json["rows"] = r.rows;
  json["cols"] = r.cols;
  const Json recipe = Json::parse(r.recipe_json, nullptr, /*allow_exceptions=*/false);
  json["recipe"] = recipe.is_discarded() ? Json(nullptr) : recipe;
  AddErrors(r, json);
  json["outcome"] = std::string(NameOf(r.outcome));
  json["damping"] = Number(r.damping);
  json["retries"] = r.retries;
  json["transform_condition_max"] = Number(r.transform_condition_max);
  json["dead_inputs"] = r.dead_inputs;
  json["dropped_inputs"] = r.dropped_inputs;
  json["tokens"] = r.tokens.has_value() ? Json(*r.tokens) : Json(nullptr);
  json["sample_rows"] = r.sample_rows;
  AddTheory(r, json);
  AddCosts(r, json);
  json["statistic_digest"] = r.statistic_digest.empty() ? Json(nullptr) : Json(r.statistic_digest);
  json["drift_digests"] = Json(r.drift_digests);
  json["tensor_digests"] = Json(r.tensor_digests);
  json["version"] = r.version;
  // Names of layers are the user's: replace what is not UTF-8 rather than throw.
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace quantd::compute
