#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace quantd::compute {

// Inputs of a layer apart by their energy M_ii: dead ones carry less than 1e-3 of the median (or
// nothing), so a weight column on them costs more than it gives (WaterSIC, arXiv 2603.04956).
struct LiveInputs {
  std::vector<int64_t> live;  // ascending
  std::vector<int64_t> dead;
};
// The median is the mean of the two middle ones for an even count.
LiveInputs FindLiveInputs(absl::Span<const double> diagonal);

}  // namespace quantd::compute
