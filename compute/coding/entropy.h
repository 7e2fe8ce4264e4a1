#pragma once

#include <cstdint>
#include <optional>

#include "absl/types/span.h"
#include "compute/coding/coding_model.h"

namespace quantd::compute {

// Empirical entropy of `values` as independent draws, bits a value: -sum p log2 p over their
// relative frequencies. 0 for none. Thread-safe.
double EmpiricalEntropy(absl::Span<const int32_t> values);
// The same from counts; unset where values share a token that are not listed.
std::optional<double> EntropyOf(const CodeCounts& counts);

// Bits a weight of a WaterSIC layer of rows x cols (numerics, section 5): codes of the cols - dead
// live columns at `entropy` bits each, 16 bits a row and a column of scales and 16 a dead index.
double LatticeRate(double entropy, int64_t rows, int64_t cols, int64_t dead);

}  // namespace quantd::compute
