#include "compute/formats/element_codec.h"

#include <Eigen/Core>
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

// In runs of 16, the shortest group: a constant trip count lets every compiler vectorize it.
template <typename Body>
void ForEach(int64_t count, Body body) {
  constexpr int64_t kRun = 16;
  int64_t i = 0;
  for (; i + kRun <= count; i += kRun) {
    for (int64_t lane = 0; lane < kRun; ++lane) body(i + lane);
  }
  for (; i < count; ++i) body(i);
}

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
  ForEach(count, [=](int64_t i) {
    const double scaled = values[i] * factor;
    const uint64_t sign = std::bit_cast<uint64_t>(scaled) >> 63;
    codes[i] = static_cast<uint8_t>(E2m1MagnitudeCode(Magnitude(scaled)) | (sign << 3));
  });
}

void DecodeE2m1(const uint8_t* codes, int64_t count, double scale, double* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = kE2m1Values[codes[i] & 15] * scale;
}

double SquaredErrorE2m1(const double* values, int64_t count, double step) {
  // Packet operations by hand (Eigen's), since compilers disagree about vectorizing this. Adding
  // 1.5 * 2^52 times a spacing rounds to whole multiples of it, ties to even, which is the even
  // code; a value is put together from its parts in [0, 2], [2, 4] and [4, 6].
  constexpr int kRun = 16;
  using Run = Eigen::Array<double, kRun, 1>;
  const double factor = 1.0 / step;
  double sum = 0.0;
  for (int64_t i = 0; i < count; i += kRun) {
    Run m = Run::Zero();
    if (i + kRun <= count) {
      m = Eigen::Map<const Run>(values + i).abs();
    } else {
      m.head(count - i) = Eigen::Map<const Eigen::ArrayXd>(values + i, count - i).abs();
    }
    const Run scaled = m * factor;
    const Run low = (scaled.min(2.0) + 0x1.8p51) - 0x1.8p51;
    const Run middle = (scaled.max(2.0).min(4.0) + 0x1.8p52) - 0x1.8p52;
    const Run high = (scaled.max(4.0).min(6.0) + 0x1.8p53) - 0x1.8p53;
    sum += (m - ((low + middle) + (high - 6.0)) * step).square().sum();
  }
  return sum;
}

uint8_t EncodeE4m3(double value) { return static_cast<uint8_t>(E4m3Code(value)); }

void EncodeE4m3(const double* values, int64_t count, double factor, uint8_t* codes) {
  ForEach(count, [=](int64_t i) { codes[i] = static_cast<uint8_t>(E4m3Code(values[i] * factor)); });
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
