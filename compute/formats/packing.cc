#include <algorithm>
#include <cassert>
#include <cstring>

#include "compute/formats/number_format.h"

namespace quantd::compute {
namespace {

// Groups of eight codes fill whole bytes whatever the bits; a last group may be shorter.
constexpr size_t kGroup = 8;

}  // namespace

void PackCodes(absl::Span<const uint8_t> codes, int bits, std::byte* packed) {
  assert(codes.size() * bits % 8 == 0);
  if (bits == 8) {
    if (!codes.empty()) std::memcpy(packed, codes.data(), codes.size());
    return;
  }
  const uint64_t mask = (1u << bits) - 1;
  for (size_t begin = 0; begin < codes.size(); begin += kGroup) {
    const size_t count = std::min(kGroup, codes.size() - begin);
    uint64_t word = 0;
    for (size_t i = 0; i < count; ++i) word |= (codes[begin + i] & mask) << (i * bits);
    for (size_t i = 0; i < count * bits / 8; ++i) *packed++ = static_cast<std::byte>(word >> 8 * i);
  }
}

void UnpackCodes(const std::byte* packed, int bits, absl::Span<uint8_t> codes) {
  assert(codes.size() * bits % 8 == 0);
  if (bits == 8) {
    if (!codes.empty()) std::memcpy(codes.data(), packed, codes.size());
    return;
  }
  const uint64_t mask = (1u << bits) - 1;
  for (size_t begin = 0; begin < codes.size(); begin += kGroup) {
    const size_t count = std::min(kGroup, codes.size() - begin);
    uint64_t word = 0;
    for (size_t i = 0; i < count * bits / 8; ++i) word |= static_cast<uint64_t>(*packed++) << 8 * i;
    for (size_t i = 0; i < count; ++i) {
      codes[begin + i] = static_cast<uint8_t>(word >> (i * bits) & mask);
    }
  }
}

}  // namespace quantd::compute
