#include "compute/backend/token_precision.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "compute/tensor/tensor.h"

namespace quantd::compute {
namespace {

constexpr uint32_t kLowestExponent = 127 - 50;
constexpr uint32_t kHighestExponent = 127 + 50;

constexpr int64_t kPiece = 1024;  // elements converted at a time

// `bits`: the upper half of a float.
uint32_t IsImmoderate(uint32_t bits) {
  const uint32_t exponent = (bits >> 7) & 0xff;
  const bool zero = (bits & 0x7fff) == 0;
  const bool moderate = exponent - kLowestExponent <= kHighestExponent - kLowestExponent;
  return static_cast<uint32_t>(!(zero | moderate));
}

// No early exits: vectorizes.
bool Narrow(const uint16_t* from, int64_t count, uint16_t* to) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = from[i];
    to[i] = bits;
    bad |= IsImmoderate(bits);
  }
  return bad == 0;
}

bool Narrow(const float* from, int64_t count, uint16_t* to) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(from[i]);
    to[i] = static_cast<uint16_t>(bits >> 16);
    bad |= (bits & 0xffff) | IsImmoderate(bits >> 16);
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
    if (!Narrow(values.data(), some, to + done)) return false;
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
    bad |= (bits & 0xffff) | IsImmoderate(bits >> 16);
  }
  return bad == 0;
}

bool NarrowToModerateBf16(DType dtype, const std::byte* from, int64_t count, uint16_t* to) {
  if (dtype == DType::kBF16 && reinterpret_cast<uintptr_t>(from) % sizeof(uint16_t) == 0) {
    return Narrow(reinterpret_cast<const uint16_t*>(from), count, to);
  }
  return NarrowConverted(dtype, from, count, to);
}

}  // namespace quantd::compute
