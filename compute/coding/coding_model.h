#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "compute/coding/token_alphabet.h"

namespace quantd::compute {

inline constexpr int kMaxClasses = 16;

// The static tables of a matrix of integers: columns of like spread form a class with a table of
// its own. WaterSIC's codes of column i spread as s L_ii / c, and its theory speaks of their
// entropies column by column; one table for all costs up to half a bit a value more.
struct CodingModel {
  struct Table {
    TokenAlphabet alphabet;
    std::vector<uint16_t> frequencies;  // sum 2^precision, the last above 0
  };

  int precision = 0;
  std::vector<uint8_t> class_of_column;
  std::vector<Table> tables;  // of each class, at most kMaxClasses
  bool has_escapes = false;
  double bits = 0.0;  // of all values, tables and classes; segments come on top
};

// The model that codes `values`, rows of `cols` each, in about the fewest bits. Deterministic; a
// few milliseconds for a million values. `values` is not empty.
CodingModel ChooseModel(absl::Span<const int32_t> values, int64_t cols);

}  // namespace quantd::compute
