#include "compute/coding/token_alphabet.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace quantd::compute {
namespace {

TEST(TokenAlphabet, ZigzagOrdersByMagnitudeAndReachesEveryInteger) {
  const std::vector<int32_t> values = {0, -1, 1, -2, 2, -3};
  for (uint32_t v = 0; v < values.size(); ++v) EXPECT_EQ(TokenAlphabet::Zigzag(values[v]), v);
  EXPECT_EQ(TokenAlphabet::Zigzag(std::numeric_limits<int32_t>::max()), 0xffff'fffe);
  EXPECT_EQ(TokenAlphabet::Zigzag(std::numeric_limits<int32_t>::min()), 0xffff'ffff);
  for (uint32_t v : {0u, 1u, 77u, 0x7fff'ffffu, 0xffff'ffffu}) {
    EXPECT_EQ(TokenAlphabet::Zigzag(TokenAlphabet::Unzigzag(v)), v);
  }
}

TEST(TokenAlphabet, TokenAndRawBitsAreTheValue) {
  for (int split = TokenAlphabet::kMinSplit; split <= TokenAlphabet::kMaxSplit; ++split) {
    const TokenAlphabet alphabet(split);
    uint32_t last = 0;
    for (uint32_t v = 0; v < 1u << (TokenAlphabet::kMaxExponent + 1); ++v) {
      const uint32_t token = alphabet.TokenOf(v);
      ASSERT_TRUE(token == last || token == last + 1) << v;  // none is left out
      last = token;
      const int bits = alphabet.RawBits(token);
      ASSERT_LE(bits, TokenAlphabet::kMaxRawBits);
      ASSERT_EQ(alphabet.Base(token) + (v & ((1u << bits) - 1)), v);
    }
    EXPECT_EQ(last, alphabet.size() - 1);
    EXPECT_EQ(alphabet.TokenOf(1u << (TokenAlphabet::kMaxExponent + 1)), TokenAlphabet::kEscape);
    EXPECT_EQ(alphabet.TokenOf(0xffff'ffff), TokenAlphabet::kEscape);
  }
}

// Counts of values whose zigzag form is 0 .. greatest, `each` times.
TokenCounts Uniform(uint32_t greatest, uint32_t each) {
  const TokenAlphabet finest(TokenAlphabet::kMaxSplit);
  TokenCounts counts(finest.size());
  for (uint32_t v = 0; v <= greatest; ++v) counts[finest.TokenOf(v)] += each;
  return counts;
}

double BitsOf(const TokenAlphabet& alphabet, const TokenCounts& finest) {
  const std::vector<uint64_t> counts = CountsIn(alphabet, finest);
  double total = 0.0;
  for (const uint64_t count : counts) total += static_cast<double>(count);
  double bits = 32.0 * static_cast<double>(counts[TokenAlphabet::kEscape]);
  uint32_t used = 0;
  for (uint32_t t = 0; t < counts.size(); ++t) {
    if (counts[t] == 0) continue;
    const auto count = static_cast<double>(counts[t]);
    bits += count * (std::log2(total / count) + alphabet.RawBits(t));
    used = t + 1;
  }
  return bits + 16.0 * used;
}

TEST(ChooseAlphabet, TakesTheCheapestAndKnowsItsBits) {
  TokenCounts skewed = Uniform(700, 3);
  for (uint32_t t = 1; t < 50; ++t) skewed[t] += 100'000 / (t * t);
  skewed[TokenAlphabet::kEscape] = 2;
  for (const TokenCounts& finest :
       {Uniform(0, 9), Uniform(2, 1000), Uniform(40, 100), Uniform(1000, 1), Uniform(1000, 900),
        Uniform(1u << 19, 2), skewed}) {
    const AlphabetChoice choice = ChooseAlphabet(finest);
    EXPECT_NEAR(choice.bits, BitsOf(choice.alphabet, finest), 1e-9 * choice.bits);
    for (int split = TokenAlphabet::kMinSplit; split <= TokenAlphabet::kMaxSplit; ++split) {
      EXPECT_LE(choice.bits, BitsOf(TokenAlphabet(split), finest) * (1.0 + 1e-9)) << split;
    }
  }
}

}  // namespace
}  // namespace quantd::compute
