#pragma once

#include <bit>
#include <cstdint>

namespace quantd::compute {

static_assert(std::endian::native == std::endian::little, "the stream is little-endian");

// The first bytes of a stream; docs/formats.md.
struct StreamHeader {
  char magic[4];
  uint8_t precision;
  uint8_t classes;
  uint16_t lanes;
  uint32_t segment_values;
  uint32_t cols;
  uint64_t count;
  uint64_t checksum;  // XXH3-64 of the values as int32
};
static_assert(sizeof(StreamHeader) == 32);

inline constexpr char kStreamMagic[4] = {'Q', 'D', 'Z', '1'};

// Behind the header: the split of each class, then, where there are several, the class of each
// column in four bits (the even column in the low ones), then a zero if that is an odd number.
inline constexpr int64_t ClassBytes(int64_t classes, int64_t cols) {
  return (classes + (classes > 1 ? (cols + 1) / 2 : 0) + 1) / 2 * 2;
}

// A state stays in [kLeastState, 2^32) and moves by words of 16 bits, so that no step of at most 16
// bits needs more than one word.
inline constexpr uint32_t kLeastState = 1u << 16;
inline constexpr int kWordBits = 16;
inline constexpr int64_t kStateWords = 2;

}  // namespace quantd::compute
