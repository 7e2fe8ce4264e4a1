#include "compute/backend/token_precision.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "compute/tensor/tensor.h"

namespace quantd::compute {
namespace {

constexpr int kExponentBias = 127;
constexpr int kMostExponent = 50;
// Magnitudes as bits of bfloat16.
constexpr uint16_t kLeast = (kExponentBias - kMostExponent) << 7;
constexpr uint16_t kMost = (kExponentBias + kMostExponent) << 7 | 0x7f;

constexpr int64_t kPiece = 1024;  // elements converted at a time

// 1 or 0. All in 16 bits, so that a vector register holds as many values as it can.
uint16_t IsImmoderate(uint16_t bits) {
  const auto magnitude = static_cast<uint16_t>(bits & 0x7fff);
  const auto above_least = static_cast<uint16_t>(magnitude - kLeast);
  return static_cast<uint16_t>((magnitude != 0) & (above_least > kMost - kLeast));
}

// No early exits: these vectorize. Elements may lie anywhere in a message, hence the memcpy.
bool NarrowBf16(const std::byte* from, int64_t count, uint16_t* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(uint16_t));
  uint16_t bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= IsImmoderate(to[i]);
  return bad == 0;
}

bool NarrowFloats(const float* from, int64_t count, uint16_t* to) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(from[i]);
    to[i] = static_cast<uint16_t>(bits >> 16);
    bad |= (bits & 0xffff) | IsImmoderate(static_cast<uint16_t>(bits >> 16));
  }
  return bad == 0;
}

// Through float32, which must hold the values exactly.
bool NarrowConverted(DType dtype, const std::byte* from, int64_t count, uint16_t* to) {
  std::array<float, kPiece> values;
  std::array<double, kPiece> exact;
  const auto element = static_cast<int64_t>(SizeOf(dtype));
  for (int64_t done = 0; done < count; done += kPiece) {
    const int64_t some = std::min(kPiece, count - done);
    ConvertToFloat(dtype, from + done * element, some, values.data());
    if (!NarrowFloats(values.data(), some, to + done)) return false;
    if (dtype != DType::kF64) continue;
    ConvertToDouble(dtype, from + done * element, some, exact.data());
    if (!std::equal(exact.begin(), exact.begin() + some, values.begin())) return false;
  }
  return true;
}

}  // namespace

bool AreModerateBf16(const float* values, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]);
    bad |= (bits & 0xffff) | IsImmoderate(static_cast<uint16_t>(bits >> 16));
  }
  return bad == 0;
}

bool NarrowToModerateBf16(DType dtype, const std::byte* from, int64_t count, uint16_t* to) {
  if (dtype != DType::kBF16) return NarrowConverted(dtype, from, count, to);
  // A piece stays in the first-level cache between being copied and being looked at.
  for (int64_t done = 0; done < count; done += kPiece) {
    const int64_t some = std::min(kPiece, count - done);
    if (!NarrowBf16(from + done * int64_t{sizeof(uint16_t)}, some, to + done)) return false;
  }
  return true;
}

}  // namespace quantd::compute
