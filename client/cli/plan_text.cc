#include "client/cli/plan_text.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/report_text.h"
#include "client/cli/terminal.h"

namespace quantd::cli {
namespace {

using client::Plan;
using client::PlannedLayer;
using nlohmann::json;

std::string Figure(const std::optional<double>& value) {
  return value.has_value() ? absl::StrFormat("%.4g", *value) : "-";
}
std::string Bits(const std::optional<double>& value) {
  return value.has_value() ? absl::StrFormat("%.3f", *value) : "-";
}
json OrNull(const std::optional<double>& value) { return value ? json(*value) : json(nullptr); }

std::string DescribeChoice(const compute::Recipe& recipe) {
  if (recipe.rate_bits == 0) return DescribeRecipe(recipe);
  return absl::StrFormat("%s %.3f", NameOf(recipe.method), recipe.rate_bits);
}

double Mass(const PlannedLayer& layer) {
  return static_cast<double>(layer.parameters) * layer.error;
}

// Of the whole error, in per cent.
double Share(const Plan& plan, const PlannedLayer& layer) {
  const double whole = static_cast<double>(plan.parameters) * plan.error;
  return whole > 0 ? 100 * Mass(layer) / whole : 0.0;
}

// Means over all parameters; unset while a layer is missing.
std::optional<MeasuredLayer> Total(const Plan& plan, const MeasuredLayers& measured) {
  MeasuredLayer total;
  for (const PlannedLayer& layer : plan.layers) {
    const auto found = measured.find(layer.layer);
    if (found == measured.end()) return std::nullopt;
    const double weight =
        static_cast<double>(layer.parameters) / static_cast<double>(plan.parameters);
    total.bits_per_weight += weight * found->second.bits_per_weight;
    total.error += weight * found->second.error;
  }
  return total;
}

std::optional<double> Ratio(const std::optional<double>& above, double below) {
  if (!above.has_value() || !(below > 0)) return std::nullopt;
  return *above / below;
}

}  // namespace

std::string FormatPlan(const Plan& plan, const MeasuredLayers& measured) {
  const std::optional<MeasuredLayer> total = Total(plan, measured);
  std::vector<std::vector<std::string>> rows = {
      {"LAYER", "PARAMETERS", "RECIPE", "BITS", "ERROR", "UNIFORM", "SHARE"}};
  if (total) rows[0].push_back("MEASURED");
  for (const PlannedLayer& layer : plan.layers) {
    rows.push_back({LastSegment(layer.layer), absl::StrCat(layer.parameters),
                    DescribeChoice(layer.recipe), Bits(layer.bits_per_weight), Figure(layer.error),
                    Figure(layer.uniform_error), absl::StrFormat("%.1f%%", Share(plan, layer))});
    if (total) rows.back().push_back(Figure(measured.at(layer.layer).error));
  }
  rows.push_back({"all", absl::StrCat(plan.parameters), "", Bits(plan.bits_per_weight),
                  Figure(plan.error), Figure(plan.uniform_error), ""});
  if (total) rows.back().push_back(Figure(total->error));
  std::string text = FormatTable(rows, {1, 3, 4, 5, 6, 7});
  const auto line = [&](absl::string_view what, const std::optional<double>& bits,
                        const std::optional<double>& error, absl::string_view remark) {
    absl::StrAppend(&text, what, " ", Bits(bits), " bits a weight, error ", Figure(error), remark,
                    "\n");
  };
  const auto gain = [&](double error) {
    const auto ratio = Ratio(plan.uniform_error, error);
    return ratio ? absl::StrFormat(", %.3f times less than uniform", *ratio) : std::string();
  };
  if (plan.uniform_error.has_value()) {
    line("uniform:  ", plan.uniform_bits_per_weight, plan.uniform_error, "");
  } else {
    absl::StrAppend(&text, "uniform:   no single choice for all layers fits\n");
  }
  line("planned:  ", plan.bits_per_weight, plan.error, gain(plan.error));
  if (total) line("measured: ", total->bits_per_weight, total->error, gain(total->error));
  absl::StrAppend(&text, "errors are means of ", plan.error_figure,
                  " over all parameters; the candidates reach ", Bits(plan.least_bits_per_weight),
                  " to ", Bits(plan.most_bits_per_weight), " bits\n");
  if (plan.failed_candidates > 0) {
    absl::StrAppend(&text, plan.failed_candidates, " candidates failed and are left out\n");
  }
  return text;
}

json PlanToJson(const Plan& plan, double budget_bits, const MeasuredLayers& measured) {
  json layers = json::array();
  for (const PlannedLayer& layer : plan.layers) {
    json object = {{"layer", LastSegment(layer.layer)},
                   {"name", layer.layer},
                   {"parameters", layer.parameters},
                   {"recipe", json::parse(compute::ToJson(layer.recipe), nullptr, false)},
                   {"bits_per_weight", layer.bits_per_weight},
                   {"error", layer.error},
                   {"uniform_error", OrNull(layer.uniform_error)},
                   {"share_of_error", Share(plan, layer) / 100},
                   {"measured_bits_per_weight", nullptr},
                   {"measured_error", nullptr}};
    if (const auto found = measured.find(layer.layer); found != measured.end()) {
      object["measured_bits_per_weight"] = found->second.bits_per_weight;
      object["measured_error"] = found->second.error;
    }
    layers.push_back(std::move(object));
  }
  const std::optional<MeasuredLayer> total = Total(plan, measured);
  const json nothing = nullptr;
  return {{"budget_bits_per_weight", budget_bits},
          {"error_figure", plan.error_figure},
          {"parameters", plan.parameters},
          {"predicted", {{"bits_per_weight", plan.bits_per_weight}, {"error", plan.error}}},
          {"uniform", plan.uniform_error
                          ? json{{"bits_per_weight", OrNull(plan.uniform_bits_per_weight)},
                                 {"error", *plan.uniform_error}}
                          : nothing},
          {"measured",
           total ? json{{"bits_per_weight", total->bits_per_weight}, {"error", total->error}}
                 : nothing},
          {"predicted_gain", OrNull(Ratio(plan.uniform_error, plan.error))},
          {"measured_gain", total ? OrNull(Ratio(plan.uniform_error, total->error)) : nothing},
          {"slope", plan.slope},
          {"error_bound", plan.error_bound},
          {"least_bits_per_weight", plan.least_bits_per_weight},
          {"most_bits_per_weight", plan.most_bits_per_weight},
          {"failed_candidates", plan.failed_candidates},
          {"layers", layers}};
}

}  // namespace quantd::cli
