#include "client/cli/report_text.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal.h"

namespace quantd::cli {
namespace {

using nlohmann::json;

// A figure of the report, or "-" where it is null or missing.
std::string Figure(const json& report, const std::string& name, const char* unit = "") {
  const auto found = report.find(name);
  if (found == report.end() || !found->is_number()) return "-";
  if (found->is_number_integer()) return absl::StrCat(found->get<int64_t>(), unit);
  return absl::StrFormat("%.4g%s", found->get<double>(), unit);
}

std::string Text(const json& report, const std::string& name) {
  const auto found = report.find(name);
  return found != report.end() && found->is_string() ? found->get<std::string>() : "-";
}

// Of the whole layer; the report lists the stages beside it.
std::string ComputeSeconds(const json& report) {
  const auto seconds = report.find("seconds");
  if (seconds == report.end() || !seconds->is_object()) return "-";
  const auto total = seconds->find("total");
  if (total == seconds->end() || !total->is_number()) return "-";
  return HumanSeconds(total->get<double>());
}

std::vector<std::string> BaselineRow(const json& report, const std::string& title,
                                     const std::string& prefix) {
  return {title,
          Figure(report, prefix + "_relative_output_error_weight_only"),
          "",
          Figure(report, prefix + "_gain_weight_only", "x"),
          Figure(report, prefix + "_relative_output_error_weight_and_activation"),
          "",
          Figure(report, prefix + "_gain_weight_and_activation", "x")};
}

}  // namespace

std::string DescribeRecipe(const compute::Recipe& recipe) {
  return absl::StrCat(NameOf(recipe.format), " ", NameOf(recipe.transform), " ",
                      NameOf(recipe.method));
}

std::string FormatReport(absl::string_view layer, absl::string_view report_json) {
  const json report = json::parse(report_json, nullptr, /*allow_exceptions=*/false);
  if (!report.is_object()) return absl::StrCat(layer, ": no report\n");
  std::string text = absl::StrCat(layer, ": ", Figure(report, "rows"), " x ",
                                  Figure(report, "cols"), ", ", Text(report, "outcome"), "\n");
  absl::StrAppend(
      &text, FormatTable({{"relative output error", "weights", "SQNR", "gain", "and activations",
                           "SQNR", "gain"},
                          {"  this result", Figure(report, "relative_output_error_weight_only"),
                           Figure(report, "sqnr_db_weight_only", " dB"), "",
                           Figure(report, "relative_output_error_weight_and_activation"),
                           Figure(report, "sqnr_db_weight_and_activation", " dB"), ""},
                          BaselineRow(report, "  identity, RTN", "baseline_identity_rtn"),
                          BaselineRow(report, "  hadamard, RTN", "baseline_hadamard_rtn")},
                         {1, 2, 3, 4, 5, 6}));
  absl::StrAppend(&text, "bits per weight ", Figure(report, "bits_per_weight"), " (codes ",
                  Figure(report, "bits_per_weight_codes"), ", scales ",
                  Figure(report, "bits_per_weight_scales"), ", transform ",
                  Figure(report, "bits_per_weight_transform"), "), tokens ",
                  Figure(report, "tokens"), ", computed in ", ComputeSeconds(report), " on ",
                  Text(report, "device"), "\n");
  if (const auto limit = report.find("waterfilling_limit_bits");
      limit != report.end() && limit->is_number()) {
    absl::StrAppend(&text, "waterfilling limit at this error ",
                    Figure(report, "waterfilling_limit_bits"), " bits, gap ",
                    Figure(report, "waterfilling_gap_bits"), "; GPTQ's predicted extra gap ",
                    Figure(report, "gptq_predicted_gap_bits"), "\n");
  }
  return text;
}

std::string OneLine(absl::string_view report_json) {
  const json report = json::parse(report_json, nullptr, /*allow_exceptions=*/false);
  return report.is_discarded() ? std::string(report_json) : report.dump();
}

}  // namespace quantd::cli
