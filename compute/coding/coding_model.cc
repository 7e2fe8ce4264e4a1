#include "compute/coding/coding_model.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "compute/coding/frequency_table.h"

namespace quantd::compute {
namespace {

// Keeps the columns of few ones and the columns of none apart without spending bins on them.
constexpr double kLeastSpread = 0.02;
constexpr double kBitsOfAClass = 4.0;  // for each column
constexpr double kBitsOfASplit = 8.0;
// Candidates: the smaller table of slots wins (it stays in a first-level cache, or in the shared
// memory of a GPU) unless the larger one saves more than this share.
constexpr int kPrecisions[] = {12, 14};
constexpr double kWorthwhile = 1e-3;

// Neighbouring bins that share a table.
struct Group {
  std::vector<uint8_t> bins;
  TokenCounts counts;
  AlphabetChoice choice;

  static Group Of(std::vector<uint8_t> bins, TokenCounts counts) {
    const AlphabetChoice choice = ChooseAlphabet(counts);
    return {.bins = std::move(bins), .counts = std::move(counts), .choice = choice};
  }
};

std::vector<Group> GroupsOf(const CodeCounts& counts) {
  std::vector<Group> groups;
  for (int bin = 0; bin < kSpreadBins; ++bin) {
    if (counts.of_bin[bin].empty()) continue;
    groups.push_back(Group::Of({static_cast<uint8_t>(bin)}, counts.of_bin[bin]));
  }
  return groups;
}

Group Merge(const Group& a, const Group& b) {
  std::vector<uint8_t> bins = a.bins;
  bins.insert(bins.end(), b.bins.begin(), b.bins.end());
  TokenCounts counts = a.counts;
  for (size_t t = 0; t < counts.size(); ++t) counts[t] += b.counts[t];
  return Group::Of(std::move(bins), std::move(counts));
}

// Joins the neighbours that lose least by it, as long as that saves more than it costs or there are
// more groups than classes.
void MergeGroups(std::vector<Group>& groups) {
  std::vector<Group> merged;  // of each group with the next
  for (size_t i = 0; i + 1 < groups.size(); ++i) merged.push_back(Merge(groups[i], groups[i + 1]));
  const auto cost = [&](size_t i) {
    return merged[i].choice.bits - groups[i].choice.bits - groups[i + 1].choice.bits -
           kBitsOfASplit;
  };
  while (!merged.empty()) {
    size_t best = 0;
    for (size_t i = 1; i < merged.size(); ++i) {
      if (cost(i) < cost(best)) best = i;
    }
    if (cost(best) > 0.0 && groups.size() <= kMaxClasses) return;
    groups[best] = std::move(merged[best]);
    groups.erase(groups.begin() + static_cast<int64_t>(best) + 1);
    merged.erase(merged.begin() + static_cast<int64_t>(best));
    if (best > 0) merged[best - 1] = Merge(groups[best - 1], groups[best]);
    if (best < merged.size()) merged[best] = Merge(groups[best], groups[best + 1]);
  }
}

Group MergeAll(const std::vector<Group>& groups) {
  Group all = groups[0];
  for (size_t i = 1; i < groups.size(); ++i) {
    all.bins.insert(all.bins.end(), groups[i].bins.begin(), groups[i].bins.end());
    for (size_t t = 0; t < all.counts.size(); ++t) all.counts[t] += groups[i].counts[t];
  }
  return Group::Of(std::move(all.bins), std::move(all.counts));
}

double SumOfBits(const std::vector<Group>& groups) {
  double bits = 0.0;
  for (const Group& group : groups) bits += group.choice.bits + kBitsOfASplit;
  return bits;
}

// Sets the tables of one precision, their bits and those of all values with them.
void FillTables(const std::vector<Group>& groups, int precision, CodingModel& model) {
  std::vector<CodingModel::Table>& tables = model.tables;
  double& bits = model.bits;
  for (const Group& group : groups) {
    const TokenAlphabet& alphabet = group.choice.alphabet;
    const std::vector<uint64_t> counts = CountsIn(alphabet, group.counts);
    tables.push_back({alphabet, NormalizeCounts(counts, precision)});
    bits += BitsWith(counts, tables.back().frequencies, precision);
    bits += 32.0 * static_cast<double>(counts[TokenAlphabet::kEscape]);
    model.fixed_bits +=
        16.0 * static_cast<double>(tables.back().frequencies.size()) + kBitsOfASplit;
    for (uint32_t t = 1; t < counts.size(); ++t) {
      bits += static_cast<double>(counts[t]) * alphabet.RawBits(t);
    }
  }
  bits += model.fixed_bits;
}

}  // namespace

std::vector<uint8_t> BinColumns(absl::Span<const double> squares, int64_t rows) {
  std::vector<double> spread;
  spread.reserve(squares.size());
  for (const double each : squares) {
    spread.push_back(std::log2(std::sqrt(each / static_cast<double>(rows)) + kLeastSpread));
  }
  const auto [low, high] = std::minmax_element(spread.begin(), spread.end());
  const double least = *low;
  const double scale = *high > least ? kSpreadBins / (*high - least) : 0.0;
  std::vector<uint8_t> bins;
  bins.reserve(spread.size());
  for (const double each : spread) {
    bins.push_back(static_cast<uint8_t>(std::min((each - least) * scale, kSpreadBins - 1.0)));
  }
  return bins;
}

int64_t CountLargeValues(const CodeCounts& counts) {
  const TokenAlphabet finest(TokenAlphabet::kMaxSplit);
  int64_t large = 0;
  for (const TokenCounts& bin : counts.of_bin) {
    for (uint32_t token = 0; token < bin.size(); ++token) {
      if (!finest.IsDirect(token)) large += bin[token];
    }
  }
  return large;
}

CodeCounts CountTokens(absl::Span<const int32_t> values, int64_t cols) {
  std::vector<double> squares(cols);
  for (size_t begin = 0; begin < values.size(); begin += cols) {
    for (int64_t c = 0; c < cols; ++c) {
      squares[c] += static_cast<double>(values[begin + c]) * values[begin + c];
    }
  }
  const auto size = static_cast<int64_t>(values.size());
  const TokenAlphabet finest(TokenAlphabet::kMaxSplit);
  CodeCounts counts = {.values = size,
                       .bin_of_column = BinColumns(squares, size / cols),
                       .of_bin = std::vector<TokenCounts>(kSpreadBins)};
  const std::vector<uint8_t>& bins = counts.bin_of_column;
  for (const uint8_t bin : bins) counts.of_bin[bin].resize(finest.size());
  for (size_t begin = 0; begin < values.size(); begin += cols) {
    for (int64_t c = 0; c < cols; ++c) {
      ++counts.of_bin[bins[c]][finest.TokenOf(TokenAlphabet::Zigzag(values[begin + c]))];
    }
  }
  if (const int64_t large = CountLargeValues(counts); large > 0 && large <= MostLargeValues(size)) {
    std::copy_if(values.begin(), values.end(), std::back_inserter(counts.large), IsLargeValue);
  }
  return counts;
}

CodingModel ChooseModel(const CodeCounts& counts) {
  std::vector<Group> groups = GroupsOf(counts);
  Group all = MergeAll(groups);
  MergeGroups(groups);
  const double bits_of_classes = kBitsOfAClass * static_cast<double>(counts.bin_of_column.size());
  if (SumOfBits(groups) + bits_of_classes >= all.choice.bits + kBitsOfASplit) {
    groups.clear();
    groups.push_back(std::move(all));
  }

  CodingModel model;
  std::vector<uint8_t> class_of_bin(kSpreadBins);
  for (size_t k = 0; k < groups.size(); ++k) {
    for (const uint8_t bin : groups[k].bins) class_of_bin[bin] = static_cast<uint8_t>(k);
    model.has_escapes |= groups[k].counts[TokenAlphabet::kEscape] > 0;
  }
  for (const uint8_t bin : counts.bin_of_column) model.class_of_column.push_back(class_of_bin[bin]);
  model.bits = std::numeric_limits<double>::infinity();
  for (const int precision : kPrecisions) {
    CodingModel other;
    other.fixed_bits = groups.size() > 1 ? bits_of_classes : 0.0;
    FillTables(groups, precision, other);
    if (other.bits >= model.bits * (1.0 - kWorthwhile)) continue;
    model.bits = other.bits;
    model.fixed_bits = other.fixed_bits;
    model.precision = precision;
    model.tables = std::move(other.tables);
  }
  return model;
}

}  // namespace quantd::compute
