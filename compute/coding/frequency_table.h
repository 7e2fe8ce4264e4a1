#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace quantd::compute {

// Static frequencies of tokens for rANS: integers that sum to 2^precision, one token or more of
// them above 0. Precision leaves room for a uint16 and for the 16 low bits of a state.
inline constexpr int kMinPrecision = 8;
inline constexpr int kMaxPrecision = 15;

// The frequencies that code tokens of these counts (sum >= 1, at most 2^precision of them above 0)
// in the fewest bits: every token that occurs gets at least 1. Trailing tokens that do not occur
// are left out.
std::vector<uint16_t> NormalizeCounts(absl::Span<const uint64_t> counts, int precision);

// Bits that tokens of these counts take with these frequencies.
double BitsWith(absl::Span<const uint64_t> counts, absl::Span<const uint16_t> frequencies,
                int precision);

// Splits frequencies of untrusted origin into `count` tables: each ends with the number that makes
// its sum 2^precision. DATA_LOSS where that cannot be or something is left over.
absl::StatusOr<std::vector<absl::Span<const uint16_t>>> SplitTables(
    absl::Span<const uint16_t> frequencies, int64_t count, int precision);

}  // namespace quantd::compute
