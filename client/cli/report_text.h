#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "client/cpp/resources.h"

namespace quantd::cli {

// "mxfp4 wush rtn"
std::string DescribeRecipe(const compute::Recipe& recipe);

// A layer's error report for reading: the errors beside those of the baselines, gains, bits, what
// they were measured on. `report_json` is the whole report; figures that are not there are shown as
// "-".
std::string FormatReport(absl::string_view layer, absl::string_view report_json);

// The report as one line of JSON, whatever its layout; unchanged where it is no JSON.
std::string OneLine(absl::string_view report_json);

}  // namespace quantd::cli
