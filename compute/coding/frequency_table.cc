#include "compute/coding/frequency_table.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <utility>

#include "absl/strings/str_cat.h"

namespace quantd::compute {
namespace {

// Bits that one step of a token's frequency costs (removing) or saves (adding).
double StepBits(uint64_t count, uint32_t from, int step) {
  const double to = static_cast<double>(from) + step;
  return static_cast<double>(count) * std::abs(std::log2(to / from));
}

// Moves the sum to 2^precision by single steps, each where it is worth most or costs least. There
// are few: rounding alone is off by less than one a token.
class Adjuster {
 public:
  Adjuster(absl::Span<const uint64_t> counts, std::vector<uint32_t>& frequencies)
      : counts_(counts), frequencies_(frequencies) {}

  void Move(int64_t difference) {
    const int step = difference > 0 ? 1 : -1;
    for (uint32_t t = 0; t < frequencies_.size(); ++t) Push(t, step);
    for (; difference != 0; difference -= step) {
      const uint32_t token = queue_.top().second;
      queue_.pop();
      frequencies_[token] += step;
      Push(token, step);
    }
  }

 private:
  void Push(uint32_t token, int step) {
    const uint32_t frequency = frequencies_[token];
    if (frequency == 0 || (step < 0 && frequency == 1)) return;
    queue_.emplace(step * StepBits(counts_[token], frequency, step), token);
  }

  const absl::Span<const uint64_t> counts_;
  std::vector<uint32_t>& frequencies_;
  std::priority_queue<std::pair<double, uint32_t>> queue_;
};

}  // namespace

std::vector<uint16_t> NormalizeCounts(absl::Span<const uint64_t> counts, int precision) {
  const auto last = std::find_if(counts.rbegin(), counts.rend(), [](uint64_t n) { return n > 0; });
  counts = counts.subspan(0, counts.rend() - last);
  uint64_t total = 0;
  for (const uint64_t count : counts) total += count;

  const double scale = std::ldexp(1.0, precision) / static_cast<double>(total);
  std::vector<uint32_t> frequencies(counts.size());
  int64_t difference = int64_t{1} << precision;
  for (size_t t = 0; t < counts.size(); ++t) {
    if (counts[t] == 0) continue;
    const double exact = static_cast<double>(counts[t]) * scale;
    frequencies[t] = static_cast<uint32_t>(std::max(1.0, std::nearbyint(exact)));
    difference -= frequencies[t];
  }
  Adjuster(counts, frequencies).Move(difference);
  return {frequencies.begin(), frequencies.end()};
}

double BitsWith(absl::Span<const uint64_t> counts, absl::Span<const uint16_t> frequencies,
                int precision) {
  double bits = 0.0;
  for (size_t t = 0; t < frequencies.size(); ++t) {
    if (counts[t] == 0) continue;
    bits += static_cast<double>(counts[t]) * (precision - std::log2(frequencies[t]));
  }
  return bits;
}

absl::StatusOr<std::vector<absl::Span<const uint16_t>>> SplitTables(
    absl::Span<const uint16_t> frequencies, int64_t count, int precision) {
  std::vector<absl::Span<const uint16_t>> tables;
  const uint32_t whole = 1u << precision;
  uint32_t sum = 0;
  size_t begin = 0;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    sum += frequencies[i];
    if (sum > whole) {
      return absl::DataLossError(absl::StrCat("z_frequency: expected table ", tables.size(),
                                              " to sum up to ", whole, "; got ", sum,
                                              " at element ", i));
    }
    if (sum < whole) continue;
    tables.push_back(frequencies.subspan(begin, i + 1 - begin));
    begin = i + 1;
    sum = 0;
  }
  if (begin != frequencies.size() || tables.size() != static_cast<size_t>(count)) {
    return absl::DataLossError(absl::StrCat("z_frequency: expected ", count, " tables; got ",
                                            tables.size(), " and ", frequencies.size() - begin,
                                            " elements"));
  }
  return tables;
}

}  // namespace quantd::compute
