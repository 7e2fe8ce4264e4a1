#include "compute/coding/token_alphabet.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace quantd::compute {
namespace {

constexpr double kBitsOfAFrequency = 16.0;
constexpr double kBitsOfAnEscape = 32.0;

double CountTimesLog(uint64_t count) {
  return count > 1 ? static_cast<double>(count) * std::log2(static_cast<double>(count)) : 0.0;
}

// What the values v in [2^e, 2^(e+1)) cost, up to the total's n log2 n.
struct Level {
  double direct_bits = 0.0;    // a token each
  double bucketed_bits = 0.0;  // four tokens and raw bits
  uint32_t last_direct = 0;    // token behind the last that occurs, in the finest alphabet; 0: none
  uint32_t last_bucket = 0;    // 1..4; 0: none
};

Level MeasureLevel(const TokenCounts& finest, int exponent) {
  const TokenAlphabet alphabet(TokenAlphabet::kMaxSplit);
  Level level;
  for (uint32_t bucket = 0; bucket < 4; ++bucket) {
    const int raw_bits = exponent - 2;
    const uint32_t base = (4 + bucket) << raw_bits;
    const uint32_t begin = alphabet.TokenOf(base);
    const uint32_t end = alphabet.TokenOf(base + (1u << raw_bits) - 1) + 1;
    uint64_t sum = 0;
    for (uint32_t token = begin; token < end; ++token) {
      if (finest[token] == 0) continue;
      level.direct_bits -= CountTimesLog(finest[token]);
      level.last_direct = token + 1;
      sum += finest[token];
    }
    if (sum == 0) continue;
    level.bucketed_bits += static_cast<double>(sum) * raw_bits - CountTimesLog(sum);
    level.last_bucket = bucket + 1;
  }
  return level;
}

}  // namespace

AlphabetChoice ChooseAlphabet(const TokenCounts& finest) {
  constexpr int kLevels = TokenAlphabet::kMaxExponent + 1;
  std::array<Level, kLevels> levels;
  for (int e = TokenAlphabet::kMinSplit; e < kLevels; ++e) levels[e] = MeasureLevel(finest, e);

  // v < 4 and the escape are the same in every alphabet.
  uint64_t total = 0;
  for (const uint32_t count : finest) total += count;
  double bits = CountTimesLog(total) + kBitsOfAnEscape * finest[TokenAlphabet::kEscape];
  uint32_t used = 0;
  for (uint32_t token = 0; token <= 4; ++token) {
    bits -= CountTimesLog(finest[token]);
    if (finest[token] > 0) used = token + 1;
  }
  AlphabetChoice best = {.alphabet = TokenAlphabet(TokenAlphabet::kMinSplit), .bits = INFINITY};
  for (int split = TokenAlphabet::kMinSplit; split <= TokenAlphabet::kMaxSplit; ++split) {
    const TokenAlphabet alphabet(split);
    double tail_bits = 0.0;
    uint32_t table = used;
    for (int e = split; e < kLevels; ++e) {
      tail_bits += levels[e].bucketed_bits;
      if (levels[e].last_bucket > 0) {
        table =
            alphabet.direct_end() + 4 * static_cast<uint32_t>(e - split) + levels[e].last_bucket;
      }
    }
    const double all = bits + tail_bits + kBitsOfAFrequency * table;
    if (all < best.bits) best = {.alphabet = alphabet, .bits = all};
    // The next split has this level's values as tokens of their own.
    bits += levels[split].direct_bits;
    used = std::max(used, levels[split].last_direct);
  }
  return best;
}

std::vector<uint64_t> CountsIn(const TokenAlphabet& alphabet, const TokenCounts& finest) {
  const TokenAlphabet from(TokenAlphabet::kMaxSplit);
  std::vector<uint64_t> counts(alphabet.size());
  counts[TokenAlphabet::kEscape] = finest[TokenAlphabet::kEscape];
  for (uint32_t token = 1; token < from.size(); ++token) {
    if (finest[token] > 0) counts[alphabet.TokenOf(from.Base(token))] += finest[token];
  }
  return counts;
}

}  // namespace quantd::compute
