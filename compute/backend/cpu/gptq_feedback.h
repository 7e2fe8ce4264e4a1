#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "compute/formats/number_format.h"

namespace quantd::compute {

// What one unit's columns, in the transformed space, tell each other. `coupling` is n x n,
// row-major, unit lower triangular in the order of processing from last to first: the unit's moment
// is N D N^T with D diagonal. `order` gives the column at each position.
struct UnitCoupling {
  std::vector<double> coupling;
  std::vector<int64_t> order;
};

// Rows of one panel: a column's values beside each other, so that all rows take a step at once.
struct FeedbackPanel {
  int64_t rows = 0;
  double* values = nullptr;        // n x rows: transformed weights; decoded ones afterwards
  uint8_t* codes = nullptr;        // n x rows
  const double* scales = nullptr;  // a row of `rows` for each group of `group` columns
  int64_t group = 0;
};

// GPTQ inside a unit, scales given: column by column z'_i = z_i + sum_{j > i} N_ji (z_j - q_j),
// q_i = z'_i rounded. With `negative_zeros` every E2M1 zero is written as -0.
void FeedBack(const NumberFormat& format, const UnitCoupling& unit, bool negative_zeros,
              const FeedbackPanel& panel);

}  // namespace quantd::compute
