#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "compute/coding/token_alphabet.h"

namespace quantd::compute {

inline constexpr int kMaxClasses = 16;
// Columns are sorted into this many bins of equal width on a logarithmic scale of their spread.
inline constexpr int kSpreadBins = 64;

// What a model is chosen by: how often the tokens of a matrix occur in columns of like spread.
struct CodeCounts {
  int64_t values = 0;
  std::vector<uint8_t> bin_of_column;
  std::vector<TokenCounts> of_bin;  // kSpreadBins; empty for a bin without columns
  // The values that share a token of the finest alphabet with others, in any order; empty where
  // they are more than MostLargeValues.
  std::vector<int32_t> large = {};
};
// How many values there are that share a token.
int64_t CountLargeValues(const CodeCounts& counts);
constexpr int64_t MostLargeValues(int64_t values) { return values / 16; }

// The bin of each column, by the sums of squares of its `rows` values.
std::vector<uint8_t> BinColumns(absl::Span<const double> squares, int64_t rows);
// Of rows of `cols` values each.
CodeCounts CountTokens(absl::Span<const int32_t> values, int64_t cols);

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
  double bits = 0.0;        // of all values, tables and classes; segments come on top
  double fixed_bits = 0.0;  // of these: tables and classes, which hardly grow with the values
};

// The model that codes values of these counts, one or more of them, in about the fewest bits.
// Deterministic; a few milliseconds.
CodingModel ChooseModel(const CodeCounts& counts);

}  // namespace quantd::compute
