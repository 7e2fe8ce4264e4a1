#include <cassert>
#include <cstring>

#include "compute/formats/number_format.h"

namespace quantd::compute {

void PackCodes(absl::Span<const uint8_t> codes, int bits, std::byte* packed) {
  assert(bits == 8 || (bits == 4 && codes.size() % 2 == 0));
  if (bits == 8) {
    if (!codes.empty()) std::memcpy(packed, codes.data(), codes.size());
    return;
  }
  for (size_t i = 0; i < codes.size() / 2; ++i) {
    packed[i] = static_cast<std::byte>((codes[2 * i] & 15) | (codes[2 * i + 1] << 4));
  }
}

void UnpackCodes(const std::byte* packed, int bits, absl::Span<uint8_t> codes) {
  assert(bits == 8 || (bits == 4 && codes.size() % 2 == 0));
  if (bits == 8) {
    if (!codes.empty()) std::memcpy(codes.data(), packed, codes.size());
    return;
  }
  for (size_t i = 0; i < codes.size() / 2; ++i) {
    const auto byte = static_cast<uint8_t>(packed[i]);
    codes[2 * i] = byte & 15;
    codes[2 * i + 1] = byte >> 4;
  }
}

}  // namespace quantd::compute
