#pragma once

#include <cstdint>

namespace quantd::compute {

// Small floating-point element and scale types, OCP Microscaling Formats v1.0 and OCP FP8.
//   E2M1: codes 0..15, bit 3 the sign; magnitudes 0 .5 1 1.5 2 3 4 6; no NaN, no Inf.
//   E4M3 (FN): codes 0..255, bit 7 the sign; largest 448 (0x7e); 0x7f and 0xff are NaN.
//   E8M0: 2^(code - 127); 255 is NaN.
// Encoding is round to nearest, ties to the even code, saturating; the sign of a zero is kept.
// Inputs are finite.

inline constexpr double kE2m1Max = 6.0;
inline constexpr double kE4m3Max = 448.0;
inline constexpr uint8_t kE4m3MaxCode = 0x7e;
inline constexpr int kE8m0Bias = 127;

// codes[i] = E2M1 of values[i] * factor.
void EncodeE2m1(const double* values, int64_t count, double factor, uint8_t* codes);
// values[i] = codes[i] * scale; only the low four bits of a code count.
void DecodeE2m1(const uint8_t* codes, int64_t count, double scale, double* values);
// Sum of (values[i] - step * E2M1(values[i] / step))^2. `step` > 0.
double SquaredErrorE2m1(const double* values, int64_t count, double step);

uint8_t EncodeE4m3(double value);
void EncodeE4m3(const double* values, int64_t count, double factor, uint8_t* codes);
// NaN for the codes 0x7f and 0xff.
double DecodeE4m3(uint8_t code);
void DecodeE4m3(const uint8_t* codes, int64_t count, double scale, double* values);

// NaN for 255.
double DecodeE8m0(uint8_t code);

// floor(log2(value)) for finite value > 0, exact also for subnormal numbers.
int FloorLog2(double value);
// Largest magnitude of `count` finite values; 0 for none.
double MaxMagnitude(const double* values, int64_t count);

}  // namespace quantd::compute
