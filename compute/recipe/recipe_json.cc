#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "compute/recipe/recipe.h"

namespace quantd::compute {
namespace {

using Json = nlohmann::ordered_json;

absl::Status Wrong(absl::string_view field, absl::string_view expected, const Json& got) {
  return absl::InvalidArgumentError(
      absl::StrCat("recipe.", field, ": expected ", expected, "; got ", got.dump().substr(0, 64)));
}

template <typename Enum>
absl::Status Read(const Json& json, absl::string_view field,
                  absl::StatusOr<Enum> (*parse)(absl::string_view), Enum& to) {
  if (!json.is_string()) return Wrong(field, "a name", json);
  absl::StatusOr<Enum> value = parse(json.get_ref<const std::string&>());
  if (!value.ok()) return value.status();
  to = *value;
  return absl::OkStatus();
}

template <typename Enum>
absl::Status Read(const Json& json, absl::string_view field,
                  absl::StatusOr<Enum> (*parse)(absl::string_view), std::optional<Enum>& to) {
  if (json.is_null()) return absl::OkStatus();
  return Read(json, field, parse, to.emplace());
}

absl::Status ReadSize(const Json& json, absl::string_view field, int64_t& to) {
  if (!json.is_number_integer() || json < 0 || json > (int64_t{1} << 32)) {
    return Wrong(field, "a whole number", json);
  }
  to = json.get<int64_t>();
  return absl::OkStatus();
}

absl::Status Read(const Json& json, absl::string_view field, double& to) {
  if (!json.is_number()) return Wrong(field, "a number", json);
  to = json.get<double>();
  return absl::OkStatus();
}

absl::Status Read(const Json& json, absl::string_view field, bool& to) {
  if (!json.is_boolean()) return Wrong(field, "true or false", json);
  to = json.get<bool>();
  return absl::OkStatus();
}

absl::Status Unknown(absl::string_view where, absl::string_view field) {
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": unknown field '", field.substr(0, 64), "'"));
}

absl::Status ReadGptqField(const std::string& field, const Json& json, GptqOptions& gptq) {
  const std::string path = "gptq." + field;
  if (field == "order") return Read(json, path, ParseBlockOrder, gptq.order);
  if (field == "act_order") return Read(json, path, gptq.act_order);
  if (field == "damping") return Read(json, path, gptq.damping);
  if (field == "allow_rtn_fallback") return Read(json, path, gptq.allow_rtn_fallback);
  if (field == "asymmetric") return Read(json, path, gptq.asymmetric);
  return Unknown("recipe.gptq", field);
}

absl::Status ReadGptq(const Json& json, GptqOptions& gptq) {
  if (json.is_null()) return absl::OkStatus();
  if (!json.is_object()) return Wrong("gptq", "an object or null", json);
  for (const auto& [field, value] : json.items()) {
    if (absl::Status status = ReadGptqField(field, value, gptq); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadField(const std::string& field, const Json& json, Recipe& r) {
  if (field == "format") return Read(json, field, ParseFormat, r.format);
  if (field == "transform") return Read(json, field, ParseTransform, r.transform);
  if (field == "method") return Read(json, field, ParseMethod, r.method);
  if (field == "solver") return Read(json, field, ParseSolver, r.solver);
  if (field == "scale_rule") return Read(json, field, ParseScaleRule, r.scale_rule);
  if (field == "granularity") return Read(json, field, ParseGranularity, r.granularity);
  if (field == "group_size") return ReadSize(json, field, r.group_size);
  if (field == "transform_block_size") return ReadSize(json, field, r.transform_block_size);
  if (field == "damping") {
    if (json.is_null()) return absl::OkStatus();
    return Read(json, field, r.damping.emplace());
  }
  if (field == "seed") {
    if (!json.is_number_unsigned()) return Wrong(field, "a whole number", json);
    r.seed = json.get<uint64_t>();
    return absl::OkStatus();
  }
  if (field == "rate_bits") return Read(json, field, r.rate_bits);
  if (field == "grid_dimension") return ReadSize(json, field, r.grid_dimension);
  if (field == "gptq") return ReadGptq(json, r.gptq);
  if (field == "skip_rate_theory") return Read(json, field, r.skip_rate_theory);
  return Unknown("recipe", field);
}

Json ToJson(const GptqOptions& gptq) {
  return {{"order", std::string(NameOf(gptq.order))},
          {"act_order", gptq.act_order},
          {"damping", gptq.damping},
          {"allow_rtn_fallback", gptq.allow_rtn_fallback},
          {"asymmetric", gptq.asymmetric}};
}

}  // namespace

std::string ToJson(const Recipe& r) {
  Json json;
  json["format"] = std::string(NameOf(r.format));
  json["transform"] = std::string(NameOf(r.transform));
  json["method"] = std::string(NameOf(r.method));
  json["solver"] = std::string(NameOf(r.solver));
  json["scale_rule"] = r.scale_rule ? Json(std::string(NameOf(*r.scale_rule))) : Json(nullptr);
  json["granularity"] = r.granularity ? Json(std::string(NameOf(*r.granularity))) : Json(nullptr);
  json["group_size"] = r.group_size;
  json["transform_block_size"] = r.transform_block_size;
  json["damping"] = r.damping ? Json(*r.damping) : Json(nullptr);
  json["seed"] = r.seed;
  json["rate_bits"] = r.rate_bits;
  json["grid_dimension"] = r.grid_dimension;
  json["gptq"] = r.method == Method::kGptq ? ToJson(r.gptq) : Json(nullptr);
  json["skip_rate_theory"] = r.skip_rate_theory;
  return json.dump();
}

absl::StatusOr<Recipe> RecipeFromJson(absl::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("recipe: expected a JSON object");
  if (!json.contains("format")) return absl::InvalidArgumentError("recipe.format: missing");
  Recipe recipe;
  for (const auto& [field, value] : json.items()) {
    if (absl::Status status = ReadField(field, value, recipe); !status.ok()) return status;
  }
  return ResolveRecipe(recipe);
}

}  // namespace quantd::compute
