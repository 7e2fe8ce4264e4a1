#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "client/cpp/resources.h"

namespace quantd::cli {

// What a planned layer turned out to be.
struct MeasuredLayer {
  double bits_per_weight = 0;
  double error = 0;  // the plan's error figure
};
// By the full name that PlannedLayer::layer holds; empty before the plan was carried out.
using MeasuredLayers = std::map<std::string, MeasuredLayer>;

// A table of the choices with totals and the gain over a uniform choice.
std::string FormatPlan(const client::Plan& plan, const MeasuredLayers& measured);

// The same with every figure: what `plan.json` holds.
nlohmann::json PlanToJson(const client::Plan& plan, double budget_bits,
                          const MeasuredLayers& measured);

}  // namespace quantd::cli
