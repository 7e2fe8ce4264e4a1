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
    if (!json.is_number()) return Wrong(field, "a number or null", json);
    r.damping = json.get<double>();
    return absl::OkStatus();
  }
  if (field == "seed") {
    if (!json.is_number_unsigned()) return Wrong(field, "a whole number", json);
    r.seed = json.get<uint64_t>();
    return absl::OkStatus();
  }
  if (field == "rate_bits") {
    if (!json.is_number()) return Wrong(field, "a number", json);
    r.rate_bits = json.get<double>();
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("recipe: unknown field '", field.substr(0, 64), "'"));
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
