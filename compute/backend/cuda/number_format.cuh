#pragma once

#include <cmath>
#include <cstdint>

#include "compute/formats/format_spec.h"

// Number formats in kernels: scales, codes and decoded values as compute/formats/*_format.cc gets
// them from the same float64 values, bit for bit (but for sums over a group: see GroupScale). A
// kernel that is built for one rule sets `spec.rule` in a copy of its own; the branches on it fold.
// Multiplications that an addition may follow are spelled __dmul_rn, so that they are not fused.
namespace quantd::compute {

// `spec` with what a kernel was built for; `kRule` < 0: any rule.
template <int kRule>
__device__ inline FormatSpec Specialized(FormatSpec spec) {
  if (kRule < 0) return spec;
  spec.rule = static_cast<FormatSpec::Rule>(kRule);
  if (kRule <= static_cast<int>(FormatSpec::Rule::kNvfp4Mse)) spec.bits = 4;
  return spec;
}

// --- E4M3, E8M0, BF16 --------------------------------------------------------------------------

__device__ inline uint64_t BitsOf(double value) {
  return static_cast<uint64_t>(__double_as_longlong(value));
}
__device__ inline double DoubleOf(uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

// Round to nearest, ties to even, saturating at 448; keeps the sign of zero.
__device__ inline uint32_t EncodeE4m3(double value) {
  constexpr double kSmallestNormal = 0x1p-6;
  const auto sign = static_cast<uint32_t>(BitsOf(value) >> 63);
  const double m = fmin(fabs(value), 448.0);
  // As on the CPU: adding 1.5 * 2^49 times the leading power of two leaves three mantissa bits.
  const double lead = DoubleOf(BitsOf(m) & (uint64_t{0x7ff} << 52));
  const double magic = __dmul_rn(fmax(lead, kSmallestNormal), 0x1.8p49);
  const double rounded = __dsub_rn(__dadd_rn(m, magic), magic);
  const uint64_t subnormal = BitsOf(__dadd_rn(rounded, 0x1p43)) & 7;
  const uint64_t normal = (BitsOf(rounded) >> 49) - (uint64_t{1023 - 7} << 3);
  return (sign << 7) | static_cast<uint32_t>(rounded < kSmallestNormal ? subnormal : normal);
}

// Of a code that is a number.
__device__ inline double DecodeE4m3(uint32_t code) {
  const uint32_t magnitude = code & 0x7f;
  const uint64_t normal = (uint64_t{magnitude} << 49) + (uint64_t{1023 - 7} << 52);
  const double value = magnitude < 8 ? static_cast<double>(magnitude) * 0x1p-9 : DoubleOf(normal);
  return (code & 0x80) != 0 ? -value : value;
}

__device__ inline double DecodeE8m0(uint32_t code) {
  // Code 0 is 2^-127, which float64 holds as a normal number.
  return DoubleOf(uint64_t{code + 1023 - 127} << 52);
}

__device__ inline uint32_t Bf16Bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
__device__ inline double RoundToBf16(double value) {
  return __uint_as_float(Bf16Bits(static_cast<float>(value)) << 16);
}

// --- Elements ----------------------------------------------------------------------------------

// What a value is multiplied with before it is rounded.
__device__ inline double RoundingFactor(double scale) { return scale > 0.0 ? 1.0 / scale : 0.0; }

__device__ inline uint32_t EncodeE2m1(double scaled) {
  const double m = fabs(scaled);
  const auto sign = static_cast<uint32_t>(BitsOf(scaled) >> 63);
  const uint32_t code = static_cast<uint32_t>(m > 0.25) + static_cast<uint32_t>(m >= 0.75) +
                        static_cast<uint32_t>(m > 1.25) + static_cast<uint32_t>(m >= 1.75) +
                        static_cast<uint32_t>(m > 2.5) + static_cast<uint32_t>(m >= 3.5) +
                        static_cast<uint32_t>(m > 5.0);
  return code | (sign << 3);
}

// 0 .5 1 1.5 2 3 4 6 and their negatives.
__device__ inline double DecodeE2m1(uint32_t code) {
  const uint32_t magnitude = code & 7;
  // Exponent and mantissa of E2M1 are the top bits of float64's but for the two subnormal codes.
  const double normal = DoubleOf((uint64_t{magnitude} << 51) + (uint64_t{1023 - 1} << 52));
  const double value = magnitude < 2 ? static_cast<double>(magnitude) * 0.5 : normal;
  return (code & 8) != 0 ? -value : value;
}

// NumberFormat::Round of one value; `factor` is RoundingFactor(scale). The code has `bits` bits.
__device__ inline uint32_t RoundElement(const FormatSpec& spec, double value, double factor) {
  const double scaled = __dmul_rn(value, factor);
  switch (spec.rule) {
    case FormatSpec::Rule::kFp8:
      return EncodeE4m3(scaled);
    case FormatSpec::Rule::kIntegerAmax:
    case FormatSpec::Rule::kIntegerGaussian: {
      const auto half = static_cast<double>(1 << (spec.bits - 1));
      const double ratio = fmin(fmax(scaled, -half), half - 1.0);
      const int code = spec.rule == FormatSpec::Rule::kIntegerGaussian ? __double2int_rd(ratio)
                                                                       : __double2int_rn(ratio);
      return static_cast<uint32_t>(code) & ((1u << spec.bits) - 1);
    }
    default:
      return EncodeE2m1(scaled);
  }
}

// NumberFormat::Decode of one code.
__device__ inline double DecodeElement(const FormatSpec& spec, uint32_t code, double scale) {
  switch (spec.rule) {
    case FormatSpec::Rule::kFp8:
      return __dmul_rn(DecodeE4m3(code), scale);
    case FormatSpec::Rule::kIntegerAmax:
    case FormatSpec::Rule::kIntegerGaussian: {
      const int unused = 32 - spec.bits;
      const auto level = static_cast<double>(static_cast<int32_t>(code << unused) >> unused);
      const double offset = spec.rule == FormatSpec::Rule::kIntegerGaussian ? 0.5 : 0.0;
      return __dmul_rn(level + offset, scale);
    }
    default:
      return __dmul_rn(DecodeE2m1(code), scale);
  }
}

// --- Scales ------------------------------------------------------------------------------------

// The exact value of the scale of a group whose largest magnitude is `amax`, for every rule but
// kIntegerGaussian; for kNvfp4Mse the plain one that the search starts from. `global` is the
// divisor of stored scales, where there is one.
__device__ inline double ScaleOfAmax(const FormatSpec& spec, double amax, double global) {
  switch (spec.rule) {
    case FormatSpec::Rule::kMxfp4Noclip: {
      const int byte = amax == 0.0 ? 0 : min(max(ilogb(amax) + 127, 2), 253);
      return DecodeE8m0(static_cast<uint32_t>(byte)) / 3.0;
    }
    case FormatSpec::Rule::kMxfp4Ocp: {
      const int byte = amax == 0.0 ? 0 : min(max(ilogb(amax) + 125, 0), 252);
      return DecodeE8m0(static_cast<uint32_t>(byte));
    }
    case FormatSpec::Rule::kNvfp4Amax:
    case FormatSpec::Rule::kNvfp4Mse: {
      if (amax == 0.0) return 0.0;
      return DecodeE4m3(max(EncodeE4m3(__dmul_rn(amax, global) / 6.0), 1u)) / global;
    }
    case FormatSpec::Rule::kFp8: {
      constexpr double kSmallest = 0x1p-126;
      constexpr double kLargest = 0x1.24924p119;  // 2^128 / 448, rounded down to a float32
      if (amax == 0.0) return 0.0;
      return static_cast<float>(fmin(fmax(amax / 448.0, kSmallest), kLargest));
    }
    default:
      return RoundToBf16(fmin(amax / spec.divisor, spec.largest_scale));
  }
}

// kIntegerGaussian: of a group of grid_cols values, the sum of whose (value / amax)^2 is `squares`.
__device__ inline double ScaleOfSquares(const FormatSpec& spec, double amax, double squares) {
  if (amax == 0.0) return 0.0;
  const double rms = amax * sqrt(squares / static_cast<double>(spec.grid_cols));
  return RoundToBf16(fmin(spec.factor * rms, spec.largest_scale));
}

// A term of that sum.
__device__ inline double RelativeSquare(double value, double amax) {
  const double ratio = value / amax;
  return __dmul_rn(ratio, ratio);
}

// The code of a scale that ScaleOfAmax, ScaleOfSquares or GroupScale returned, as it is stored:
// bytes of E8M0 and E4M3, the bits of a BF16 or of a float32.
__device__ inline uint32_t StoredScale(const FormatSpec& spec, double scale, double global) {
  switch (spec.rule) {
    case FormatSpec::Rule::kMxfp4Noclip:
      return static_cast<uint32_t>(ilogb(scale * 3.0 * 1.25) + 127);
    case FormatSpec::Rule::kMxfp4Ocp:
      return static_cast<uint32_t>(ilogb(scale * 1.25) + 127);
    case FormatSpec::Rule::kNvfp4Amax:
    case FormatSpec::Rule::kNvfp4Mse:
      return EncodeE4m3(__dmul_rn(scale, global));
    case FormatSpec::Rule::kFp8:
      return __float_as_uint(static_cast<float>(scale));
    default:
      return Bf16Bits(static_cast<float>(scale));
  }
}

// Stores it as element `at`.
__device__ inline void StoreScale(const FormatSpec& spec, double scale, double global, int64_t at,
                                  uint8_t* scales) {
  const uint32_t stored = StoredScale(spec, scale, global);
  switch (spec.rule) {
    case FormatSpec::Rule::kFp8:
      reinterpret_cast<uint32_t*>(scales)[at] = stored;
      return;
    case FormatSpec::Rule::kIntegerAmax:
    case FormatSpec::Rule::kIntegerGaussian:
      reinterpret_cast<uint16_t*>(scales)[at] = static_cast<uint16_t>(stored);
      return;
    default:
      scales[at] = static_cast<uint8_t>(stored);
  }
}

// (value - step * E2M1(value / step))^2, `factor` = 1 / step.
__device__ inline double SquaredErrorE2m1(double value, double step, double factor) {
  const double m = fabs(value);
  const double scaled = __dmul_rn(m, factor);
  const double low = __dsub_rn(__dadd_rn(fmin(scaled, 2.0), 0x1.8p51), 0x1.8p51);
  const double middle = __dsub_rn(__dadd_rn(fmin(fmax(scaled, 2.0), 4.0), 0x1.8p52), 0x1.8p52);
  const double high = __dsub_rn(__dadd_rn(fmin(fmax(scaled, 4.0), 6.0), 0x1.8p53), 0x1.8p53);
  const double rounded = (low + middle) + (high - 6.0);
  const double error = __dsub_rn(m, __dmul_rn(rounded, step));
  return __dmul_rn(error, error);
}

// --- Groups of a row ---------------------------------------------------------------------------
// A group lies in kLanes (a power of two) neighbouring lanes of a warp, kValues in each; shorter
// groups end with zeros. Every lane of the warp calls and gets the result of its group. Lanes hold
// columns one after the other or, kPaired (4 lanes, 4 values), as tensor cores leave a row of 16:
// lane q the columns 2q, 2q + 1, 2q + 8 and 2q + 9.

template <int kLanes>
__device__ inline double MaxOverLanes(double value) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    value = fmax(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  }
  return value;
}

template <int kLanes>
__device__ inline double SumOverLanes(double value) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    value = __dadd_rn(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  }
  return value;
}

template <int kLanes, int kValues>
__device__ inline double GroupAmax(const double (&values)[kValues]) {
  double amax = 0.0;
#pragma unroll
  for (int i = 0; i < kValues; ++i) amax = fmax(amax, fabs(values[i]));
  return MaxOverLanes<kLanes>(amax);
}

// The sum of 16 terms by pairs, over bits 2, 3, 1 and 0 of their column: the order of the CPU's
// vectors. Destroys `terms`.
template <int kLanes, int kValues, bool kPaired>
__device__ inline double SumOf16(double (&terms)[kValues]) {
  static_assert(kLanes * kValues == 16 && (!kPaired || kLanes == 4));
  // Which bit of the lane, and which of the index, is this bit of the column.
  constexpr int kLaneBits[] = {kPaired ? 2 : 4 / kValues, kPaired ? 0 : 8 / kValues,
                               kPaired ? 1 : 2 / kValues, kPaired ? 0 : 1 / kValues};
  constexpr int kIndexBits[] = {4, kPaired ? 2 : 8, 2, 1};
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      if (kLaneBits[step] > 0) {
        terms[i] = __dadd_rn(terms[i], __shfl_xor_sync(0xffffffffu, terms[i], kLaneBits[step]));
      } else if ((i & kIndexBits[step]) == 0) {
        terms[i] = __dadd_rn(terms[i], terms[i + kIndexBits[step]]);
      }
    }
  }
  return terms[0];
}

// The k-th code that NVFP4's search tries, in order of preference; `plain` is always valid.
constexpr int kSearched = 7;
__device__ inline int SearchedCode(int plain, int k) {
  constexpr uint32_t kOffsets = 0x0126354;  // 0, 1, -1, 2, -2, -3, -4: four bits each, plus 4
  return plain + static_cast<int>((kOffsets >> (4 * k)) & 15) - 4;
}
__device__ inline bool IsScaleCode(int code) { return code >= 1 && code <= 0x7e; }

// By float64, as the CPU does it.
template <int kLanes, int kValues, bool kPaired>
__device__ inline int SearchExactly(const double (&values)[kValues], int plain, double global) {
  double least = INFINITY;
  int best = plain;
#pragma unroll 1
  for (int k = 0; k < kSearched; ++k) {
    const int code = SearchedCode(plain, k);
    const bool valid = IsScaleCode(code);
    const double step = DecodeE4m3(static_cast<uint32_t>(valid ? code : plain)) / global;
    const double factor = 1.0 / step;
    double terms[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) terms[i] = SquaredErrorE2m1(values[i], step, factor);
    const double error = SumOf16<kLanes, kValues, kPaired>(terms);
    if (valid && error < least) {
      least = error;
      best = code;
    }
  }
  return best;
}

// (magnitude - step * E2M1(magnitude / step))^2 in float32, magnitudes below 2^20.
__device__ inline float RoughSquaredError(float magnitude, float step, float factor) {
  const float scaled = magnitude * factor;
  // 1.5 * 2^22 times the leading power of two, at least 1, leaves one bit behind it.
  const float magic = __uint_as_float((__float_as_uint(fmaxf(scaled, 1.0f)) & 0xff800000u) +
                                      ((22u << 23) | 0x400000u));
  const float rounded = fminf(__fsub_rn(__fadd_rn(scaled, magic), magic), 6.0f);
  const float error = fmaf(-rounded, step, magnitude);
  return error * error;
}

__device__ inline float RoughE4m3(int code) {
  return code < 8 ? static_cast<float>(code) * 0x1p-9f
                  : __uint_as_float((static_cast<uint32_t>(code) << 20) + ((127u - 7u) << 23));
}

// NVFP4's search: of the codes around the plain one the one of least squared error. In units of the
// plain step float32 has the magnitudes to 1e-6 and the errors of a group, E, to 2e-5 sqrt(E);
// where the two best are nearer than that, the warp searches by float64.
template <int kLanes, int kValues, bool kPaired>
__device__ inline double SearchScale(const double (&values)[kValues], double amax, double global) {
  const double known = amax > 0.0 ? amax : 0x1p-1022;  // lanes stay together
  const int plain = static_cast<int>(max(EncodeE4m3(__dmul_rn(known, global) / 6.0), 1u));
  const double factor = global / DecodeE4m3(static_cast<uint32_t>(plain));
  const float plain_value = RoughE4m3(plain);
  const float plain_factor = 1.0f / plain_value;
  float magnitudes[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    magnitudes[i] = static_cast<float>(fmin(fabs(values[i]) * factor, 1e6));
  }
  float least = INFINITY;
  float second = INFINITY;
  int best = plain;
#pragma unroll
  for (int k = 0; k < kSearched; ++k) {
    const int code = SearchedCode(plain, k);
    const bool valid = IsScaleCode(code);
    const float value = valid ? RoughE4m3(code) : plain_value;
    const float step = value * plain_factor;
    const float step_factor = __fdividef(plain_value, value);
    float error = 0.0f;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      error += RoughSquaredError(magnitudes[i], step, step_factor);
    }
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
      error += __shfl_xor_sync(0xffffffffu, error, lanes);
    }
    error = valid ? error : INFINITY;
    second = fminf(second, fmaxf(error, least));
    best = error < least ? code : best;
    least = fminf(least, error);
  }
  // False for Inf and NaN.
  const bool certain = second - least > 4e-5f * sqrtf(second) + 1e-6f || amax == 0.0;
  if (!__all_sync(0xffffffffu, certain)) {
    best = SearchExactly<kLanes, kValues, kPaired>(values, plain, global);
  }
  return DecodeE4m3(static_cast<uint32_t>(best)) / global;
}

// The scale of a group that is one row high, exactly as decoded. kIntegerGaussian sums its squares
// in another order than the CPU, so that one scale in about 2^45 may be the neighbouring BF16.
// kNvfp4Mse takes groups of kLanes * kValues = 16.
template <int kLanes, int kValues, bool kPaired = false>
__device__ inline double GroupScale(const FormatSpec& spec, const double (&values)[kValues],
                                    double global) {
  const double amax = GroupAmax<kLanes, kValues>(values);
  if (spec.rule == FormatSpec::Rule::kIntegerGaussian) {
    double squares = 0.0;
    if (amax > 0.0) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) squares += RelativeSquare(values[i], amax);
    }
    return ScaleOfSquares(spec, amax, SumOverLanes<kLanes>(squares));
  }
  if constexpr (kLanes * kValues == 16) {
    if (spec.rule == FormatSpec::Rule::kNvfp4Mse) {
      const double best = SearchScale<kLanes, kValues, kPaired>(values, amax, global);
      return amax > 0.0 ? best : 0.0;
    }
  }
  return ScaleOfAmax(spec, amax, global);
}

}  // namespace quantd::compute
