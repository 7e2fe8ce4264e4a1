#include "compute/formats/element_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

// The loops have no branches and no calls, so that they vectorize under plain IEEE arithmetic.
namespace quantd::compute {
namespace {

constexpr uint64_t kMagnitudeBits = ~(uint64_t{1} << 63);

constexpr std::array<double, 16> kE2m1Values = {0.0,  0.5,  1.0,  1.5,  2.0,  3.0,  4.0,  6.0,
                                                -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0};

constexpr double E4m3Value(int code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  double value = exponent == 0 ? mantissa : 8 + mantissa;
  for (int e = std::max(exponent, 1); e < 10; ++e) value *= 0.5;
  for (int e = 10; e < exponent; ++e) value *= 2.0;
  return (code & 128) != 0 ? -value : value;
}

constexpr std::array<double, 256> MakeE4m3Values() {
  std::array<double, 256> values{};
  for (int code = 0; code < 256; ++code) values[code] = E4m3Value(code);
  return values;
}
constexpr std::array<double, 256> kE4m3Values = MakeE4m3Values();

double Magnitude(double value) {
  return std::bit_cast<double>(std::bit_cast<uint64_t>(value) & kMagnitudeBits);
}

// A midpoint belongs to the even one of its neighbours: `>` keeps a tie below, `>=` lifts it.
uint64_t E2m1MagnitudeCode(double m) {
  return static_cast<uint64_t>(m > 0.25) + static_cast<uint64_t>(m >= 0.75) +
         static_cast<uint64_t>(m > 1.25) + static_cast<uint64_t>(m >= 1.75) +
         static_cast<uint64_t>(m > 2.5) + static_cast<uint64_t>(m >= 3.5) +
         static_cast<uint64_t>(m > 5.0);
}

// The value of that code, without a table.
double E2m1MagnitudeValue(double m) {
  return (m > 0.25 ? 0.5 : 0.0) + (m >= 0.75 ? 0.5 : 0.0) + (m > 1.25 ? 0.5 : 0.0) +
         (m >= 1.75 ? 0.5 : 0.0) + (m > 2.5 ? 1.0 : 0.0) + (m >= 3.5 ? 1.0 : 0.0) +
         (m > 5.0 ? 2.0 : 0.0);
}

uint64_t E4m3Code(double value) {
  constexpr uint64_t kExponentBits = uint64_t{0x7ff} << 52;
  constexpr double kSmallestNormal = 0x1p-6;
  const uint64_t sign = std::bit_cast<uint64_t>(value) >> 63;
  double m = Magnitude(value);
  m = m < kE4m3Max ? m : kE4m3Max;
  // Adding 1.5 * 2^49 times the leading power of two leaves three mantissa bits; the hardware
  // rounds to nearest even. Below the normal numbers the spacing stays that of the smallest.
  const double lead = std::bit_cast<double>(std::bit_cast<uint64_t>(m) & kExponentBits);
  const double magic = (lead > kSmallestNormal ? lead : kSmallestNormal) * 0x1.8p49;
  const double rounded = (m + magic) - magic;
  // Subnormal codes count steps of 2^-9, which adding 2^43 puts into the last bits.
  const uint64_t subnormal = std::bit_cast<uint64_t>(rounded + 0x1p43) & 7;
  const uint64_t normal = (std::bit_cast<uint64_t>(rounded) >> 49) - (uint64_t{1023 - 7} << 3);
  return (sign << 7) | (rounded < kSmallestNormal ? subnormal : normal);
}

}  // namespace

void EncodeE2m1(const double* values, int64_t count, double factor, uint8_t* codes) {
  for (int64_t i = 0; i < count; ++i) {
    const double scaled = values[i] * factor;
    const uint64_t sign = std::bit_cast<uint64_t>(scaled) >> 63;
    codes[i] = static_cast<uint8_t>(E2m1MagnitudeCode(Magnitude(scaled)) | (sign << 3));
  }
}

void DecodeE2m1(const uint8_t* codes, int64_t count, double scale, double* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = kE2m1Values[codes[i] & 15] * scale;
}

double SquaredErrorE2m1(const double* values, int64_t count, double step) {
  const double factor = 1.0 / step;
  // Independent partial sums: float addition must not be reordered by the compiler.
  constexpr int kLanes = 8;
  double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double m = Magnitude(values[i + lane]);
      const double error = m - E2m1MagnitudeValue(m * factor) * step;
      sums[lane] += error * error;
    }
  }
  double sum = 0.0;
  for (double part : sums) sum += part;
  for (; i < count; ++i) {
    const double m = Magnitude(values[i]);
    const double error = m - E2m1MagnitudeValue(m * factor) * step;
    sum += error * error;
  }
  return sum;
}

uint8_t EncodeE4m3(double value) { return static_cast<uint8_t>(E4m3Code(value)); }

void EncodeE4m3(const double* values, int64_t count, double factor, uint8_t* codes) {
  for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(E4m3Code(values[i] * factor));
}

double DecodeE4m3(uint8_t code) { return kE4m3Values[code]; }

void DecodeE4m3(const uint8_t* codes, int64_t count, double scale, double* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = kE4m3Values[codes[i]] * scale;
}

double DecodeE8m0(uint8_t code) {
  if (code == 255) return std::numeric_limits<double>::quiet_NaN();
  return std::ldexp(1.0, static_cast<int>(code) - kE8m0Bias);
}

int FloorLog2(double value) { return std::ilogb(value); }

double MaxMagnitude(const double* values, int64_t count) {
  // Magnitudes of finite numbers order like their bits, and integer maxima vectorize.
  int64_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = static_cast<int64_t>(std::bit_cast<uint64_t>(values[i]) & kMagnitudeBits);
    largest = bits > largest ? bits : largest;
  }
  return std::bit_cast<double>(largest);
}

}  // namespace quantd::compute
