#include "compute/coding/entropy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace quantd::compute {
namespace {

// Ranges beyond it are sorted rather than counted: a table would leave the caches.
constexpr int64_t kLargestTable = int64_t{1} << 20;

// Sums of n log2 n, from which the entropy of N values is log2 N - sum / N.
class LogSum {
 public:
  void Add(uint32_t count) {
    if (count > 1) sum_ += static_cast<double>(count) * std::log2(static_cast<double>(count));
  }
  double Entropy(size_t values) const {
    const auto count = static_cast<double>(values);
    return std::max(0.0, std::log2(count) - sum_ / count);
  }

 private:
  double sum_ = 0.0;
};

double CountInTable(absl::Span<const int32_t> values, int32_t least, int64_t range) {
  // Equal neighbours are the rule at low rates; counters of their own keep one from waiting for
  // the other's store.
  constexpr size_t kTables = 4;
  std::vector<std::array<uint32_t, kTables>> counts(range);
  const auto slot = [least](int32_t value) { return static_cast<int64_t>(value) - least; };
  size_t i = 0;
  for (; i + kTables <= values.size(); i += kTables) {
    for (size_t k = 0; k < kTables; ++k) ++counts[slot(values[i + k])][k];
  }
  for (; i < values.size(); ++i) ++counts[slot(values[i])][0];
  LogSum sum;
  for (const auto& each : counts) sum.Add(each[0] + each[1] + each[2] + each[3]);
  return sum.Entropy(values.size());
}

void AddSorted(absl::Span<const int32_t> values, LogSum& sum) {
  std::vector<int32_t> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  for (size_t begin = 0, end = 0; begin < sorted.size(); begin = end) {
    while (end < sorted.size() && sorted[end] == sorted[begin]) ++end;
    sum.Add(static_cast<uint32_t>(end - begin));
  }
}

}  // namespace

double EmpiricalEntropy(absl::Span<const int32_t> values) {
  if (values.empty()) return 0.0;
  int32_t least = values[0];
  int32_t greatest = values[0];
  for (const int32_t value : values) {
    least = std::min(least, value);
    greatest = std::max(greatest, value);
  }
  const int64_t range = static_cast<int64_t>(greatest) - least + 1;
  if (range <= kLargestTable) return CountInTable(values, least, range);
  LogSum sum;
  AddSorted(values, sum);
  return sum.Entropy(values.size());
}

std::optional<double> EntropyOf(const CodeCounts& counts) {
  if (CountLargeValues(counts) != static_cast<int64_t>(counts.large.size())) return std::nullopt;
  const TokenAlphabet finest(TokenAlphabet::kMaxSplit);
  LogSum sum;
  for (uint32_t token = 0; token < finest.size(); ++token) {
    if (!finest.IsDirect(token)) continue;
    uint32_t all = 0;
    for (const TokenCounts& bin : counts.of_bin) all += bin.empty() ? 0 : bin[token];
    sum.Add(all);
  }
  AddSorted(counts.large, sum);
  return counts.values == 0 ? 0.0 : sum.Entropy(counts.values);
}

double LatticeRate(double entropy, int64_t rows, int64_t cols, int64_t dead) {
  constexpr double kSideBits = 16.0;
  const auto r = static_cast<double>(rows);
  const auto c = static_cast<double>(cols);
  const auto d = static_cast<double>(dead);
  return entropy * (c - d) / c + kSideBits / r + kSideBits / c + kSideBits * d / (r * c);
}

}  // namespace quantd::compute
