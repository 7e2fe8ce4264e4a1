#include "compute/formats/integer_format.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "compute/formats/element_codec.h"

namespace quantd::compute {
namespace {

// k_2 .. k_8.
constexpr std::array<double, 7> kGaussianClip = {1.49353, 2.05107, 2.51393, 2.91609,
                                                 3.27660, 3.60105, 3.88494};
// Adding and subtracting it rounds a double below 2^51 to the nearest even integer.
constexpr double kRoundToInteger = 0x1.8p52;

class IntegerFormat final : public NumberFormat {
 public:
  IntegerFormat(int bits, int64_t group, ScaleRule rule)
      : bits_(bits),
        group_(group),
        rule_(rule),
        low_(-std::ldexp(1.0, bits - 1)),
        high_(std::ldexp(1.0, bits - 1) - 1.0),
        // The largest bf16 below 2^(129 - bits): the largest code times it is a finite float32.
        largest_scale_((2.0 - 0x1p-7) * std::ldexp(1.0, 128 - bits)) {
    if (bits < 4) wide_ = CreateIntegerFormat(8, group, ScaleRule::kAbsmax);
  }

  FormatSpec spec() const override {
    return {.rule = rule_ == ScaleRule::kGaussianMse ? FormatSpec::Rule::kIntegerGaussian
                                                     : FormatSpec::Rule::kIntegerAmax,
            .bits = bits_,
            .grid_rows = 1,
            .grid_cols = group_,
            .divisor = rule_ == ScaleRule::kAbsmax ? high_ : Levels() / 2.0,
            .factor = GaussianFactor(),
            .largest_scale = largest_scale_};
  }
  ScaleGrid grid() const override { return {1, group_}; }
  const NumberFormat& activation_format() const override { return wide_ ? *wide_ : *this; }
  int element_bits() const override { return bits_; }
  DType scale_dtype() const override { return DType::kBF16; }
  DType packed_dtype() const override { return DType::kU8; }
  std::optional<int> element_mantissa_bits() const override { return std::nullopt; }
  int scale_mantissa_bits() const override { return 7; }
  std::optional<float> GlobalScale(double /*amax*/) const override { return std::nullopt; }

  void ComputeScales(const double* values, int64_t rows, int64_t cols,
                     std::optional<float> /*global*/, double* scales) const override {
    const int64_t groups = rows * (cols / group_);
    for (int64_t g = 0; g < groups; ++g) {
      const double exact = ExactScale(values + g * group_);
      scales[g] = Bf16ToFloat(FloatToBf16(static_cast<float>(std::min(exact, largest_scale_))));
    }
  }

  void Round(const double* values, int64_t count, double scale, uint8_t* codes) const override {
    const auto mask = static_cast<int32_t>((1u << bits_) - 1);
    const double factor = scale > 0.0 ? 1.0 / scale : 0.0;
    if (rule_ == ScaleRule::kGaussianMse) {
      for (int64_t i = 0; i < count; ++i) {
        const double code = std::floor(std::clamp(values[i] * factor, low_, high_));
        codes[i] = static_cast<uint8_t>(static_cast<int32_t>(code) & mask);
      }
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      const double ratio = std::clamp(values[i] * factor, low_, high_);
      const double code = (ratio + kRoundToInteger) - kRoundToInteger;
      codes[i] = static_cast<uint8_t>(static_cast<int32_t>(code) & mask);
    }
  }

  void Decode(const uint8_t* codes, int64_t count, double scale, double* values) const override {
    const int unused = 8 - bits_;
    const double offset = rule_ == ScaleRule::kGaussianMse ? 0.5 : 0.0;
    for (int64_t i = 0; i < count; ++i) {
      const auto shifted = static_cast<int8_t>(static_cast<uint8_t>(codes[i] << unused));
      values[i] = (static_cast<double>(shifted >> unused) + offset) * scale;
    }
  }

  void PackScales(absl::Span<const double> scales, std::optional<float> /*global*/,
                  std::byte* packed) const override {
    for (size_t i = 0; i < scales.size(); ++i) {
      const uint16_t bits = FloatToBf16(static_cast<float>(scales[i]));
      std::memcpy(packed + 2 * i, &bits, sizeof(bits));
    }
  }
  void UnpackScales(const std::byte* packed, std::optional<float> /*global*/,
                    absl::Span<double> scales) const override {
    for (size_t i = 0; i < scales.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, packed + 2 * i, sizeof(bits));
      scales[i] = Bf16ToFloat(bits);
    }
  }

 private:
  double Levels() const { return std::ldexp(1.0, bits_) - 1.0; }
  double GaussianFactor() const { return kGaussianClip[bits_ - 2] * 2.0 / Levels(); }

  double ExactScale(const double* group) const {
    const double amax = MaxMagnitude(group, group_);
    if (rule_ == ScaleRule::kAbsmax) return amax / high_;
    if (rule_ == ScaleRule::kCompressedTensors || amax == 0.0) return amax / (Levels() / 2.0);
    // Relative to amax, so that squares neither overflow nor vanish.
    double sum = 0.0;
    for (int64_t i = 0; i < group_; ++i) sum += (group[i] / amax) * (group[i] / amax);
    const double rms = amax * std::sqrt(sum / static_cast<double>(group_));
    return GaussianFactor() * rms;
  }

  const int bits_;
  const int64_t group_;
  const ScaleRule rule_;
  const double low_;
  const double high_;
  const double largest_scale_;
  std::unique_ptr<const NumberFormat> wide_;  // of activations, where they are not as narrow
};

}  // namespace

std::unique_ptr<const NumberFormat> CreateIntegerFormat(int bits, int64_t group, ScaleRule rule) {
  return std::make_unique<IntegerFormat>(bits, group, rule);
}

}  // namespace quantd::compute
