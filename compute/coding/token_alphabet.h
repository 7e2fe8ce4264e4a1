#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace quantd::compute {

// Integers as tokens of a small alphabet, each with some raw bits behind it, so that a table of
// frequencies stays small however far the tails of a distribution reach. With v the zigzag form of
// a value (0 -1 1 -2 ... -> 0 1 2 3 ...), e = floor(log2 v) and a split s:
//   v < 2^s        token 1 + v                                         no raw bits
//   s <= e <= 18   token 1 + 2^s + 4 (e - s) + next two bits of v      the e - 2 low bits of v
//   e > 18         token 0, the escape                                 the value is kept elsewhere
// Immutable and thread-safe.
class TokenAlphabet {
 public:
  static constexpr int kMinSplit = 2;
  static constexpr int kMaxSplit = 10;
  static constexpr uint32_t kEscape = 0;
  static constexpr int kMaxExponent = 18;
  static constexpr int kMaxRawBits = kMaxExponent - 2;

  // `split` in [kMinSplit, kMaxSplit].
  constexpr explicit TokenAlphabet(int split) : split_(split), direct_end_(1 + (1u << split)) {}

  constexpr int split() const { return split_; }
  // Tokens [1, direct_end) have no raw bits.
  constexpr uint32_t direct_end() const { return direct_end_; }
  constexpr uint32_t size() const {
    return direct_end_ + 4 * static_cast<uint32_t>(kMaxExponent + 1 - split_);
  }

  static constexpr uint32_t Zigzag(int32_t value) {
    return (static_cast<uint32_t>(value) << 1) ^ static_cast<uint32_t>(value >> 31);
  }
  static constexpr int32_t Unzigzag(uint32_t v) {
    return static_cast<int32_t>((v >> 1) ^ (0u - (v & 1)));
  }

  constexpr uint32_t TokenOf(uint32_t v) const {
    if (v < direct_end_ - 1) return 1 + v;
    const int exponent = std::bit_width(v) - 1;
    if (exponent > kMaxExponent) return kEscape;
    return direct_end_ + 4 * static_cast<uint32_t>(exponent - split_) + ((v >> (exponent - 2)) & 3);
  }
  constexpr bool IsDirect(uint32_t token) const { return token != kEscape && token < direct_end_; }
  // For any token of the alphabet.
  constexpr int RawBits(uint32_t token) const {
    return token < direct_end_ ? 0 : split_ - 2 + static_cast<int>((token - direct_end_) / 4);
  }
  // The least v of a token that is no escape; its raw bits are added.
  constexpr uint32_t Base(uint32_t token) const {
    if (token < direct_end_) return token - 1;
    return (4 + (token - direct_end_) % 4) << RawBits(token);
  }

 private:
  int split_;
  uint32_t direct_end_;
};

// Whether the value shares its token of the finest alphabet with others.
constexpr bool IsLargeValue(int32_t value) {
  const TokenAlphabet finest(TokenAlphabet::kMaxSplit);
  return !finest.IsDirect(finest.TokenOf(TokenAlphabet::Zigzag(value)));
}

// How often each token of the finest alphabet (split kMaxSplit) occurs.
using TokenCounts = std::vector<uint32_t>;

// The alphabet that codes values of these counts in the least space, and that space: tokens at
// their entropy, raw bits, escapes and the table of frequencies. Counts sum to 1 or more.
struct AlphabetChoice {
  TokenAlphabet alphabet;
  double bits;
};
AlphabetChoice ChooseAlphabet(const TokenCounts& finest);

// The same values counted as tokens of `alphabet`.
std::vector<uint64_t> CountsIn(const TokenAlphabet& alphabet, const TokenCounts& finest);

}  // namespace quantd::compute
