#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace quantd::compute {

// Consecutive columns whose transforms and scales are set together, from the weights as updated by
// everything before them: one scale group, or what whole scale groups and whole transform blocks
// both fill.
struct GptqUnit {
  int64_t first = 0;  // column of the layer
  int64_t width = 0;
  int64_t begin = 0;           // where its columns are in the arrangement
  std::vector<int64_t> inner;  // of position begin + i: the column less `first`
};

// The columns arranged so that they are processed from last to first.
struct GptqPlan {
  std::vector<GptqUnit> units;    // by `begin`
  std::vector<int64_t> arranged;  // position to column
};

struct GptqPlanOptions {
  int64_t cols = 0;
  int64_t scale_cols = 0;       // columns that share a scale
  int64_t transform_block = 0;  // 0 without a transform
  bool descending = false;
  // Not empty: act_order by this diagonal of the moment. Units come in order of their mean, largest
  // first; without a transform the columns inside them, too. Equal ones keep their order.
  absl::Span<const double> diagonal = {};
};
GptqPlan PlanGptq(const GptqPlanOptions& options);

}  // namespace quantd::compute
