#include "compute/formats/mxfp4_format.h"

#include <algorithm>
#include <cmath>

#include "compute/formats/element_codec.h"

namespace quantd::compute {
namespace {

constexpr int64_t kGroup = 32;

class Mxfp4Format final : public NumberFormat {
 public:
  explicit Mxfp4Format(bool noclip) : noclip_(noclip) {}

  FormatSpec spec() const override {
    return {.rule = noclip_ ? FormatSpec::Rule::kMxfp4Noclip : FormatSpec::Rule::kMxfp4Ocp,
            .bits = 4,
            .grid_rows = 1,
            .grid_cols = kGroup};
  }
  ScaleGrid grid() const override { return {1, kGroup}; }
  int element_bits() const override { return 4; }
  DType scale_dtype() const override { return DType::kU8; }
  DType packed_dtype() const override { return DType::kU8; }
  std::optional<int> element_mantissa_bits() const override { return 1; }
  int scale_mantissa_bits() const override { return 0; }

  std::optional<float> GlobalScale(double /*amax*/) const override {
    return noclip_ ? std::optional<float>(3.0f) : std::nullopt;
  }

  void ComputeScales(const double* values, int64_t rows, int64_t cols,
                     std::optional<float> /*global*/, double* scales) const override {
    const int64_t groups = rows * (cols / kGroup);
    for (int64_t g = 0; g < groups; ++g) {
      scales[g] = Step(Byte(MaxMagnitude(values + g * kGroup, kGroup)));
    }
  }

  void Round(const double* values, int64_t count, double scale, uint8_t* codes) const override {
    EncodeE2m1(values, count, 1.0 / scale, codes);
  }
  void Decode(const uint8_t* codes, int64_t count, double scale, double* values) const override {
    DecodeE2m1(codes, count, scale, values);
  }

  void PackScales(absl::Span<const double> scales, std::optional<float> /*global*/,
                  std::byte* packed) const override {
    for (size_t i = 0; i < scales.size(); ++i) {
      // Times 3 undoes the division up to rounding, which rounding to the power of two removes.
      const double power = noclip_ ? scales[i] * 3.0 : scales[i];
      packed[i] = static_cast<std::byte>(FloorLog2(power * 1.25) + kE8m0Bias);
    }
  }
  void UnpackScales(const std::byte* packed, std::optional<float> /*global*/,
                    absl::Span<double> scales) const override {
    for (size_t i = 0; i < scales.size(); ++i) scales[i] = Step(static_cast<uint8_t>(packed[i]));
  }

 private:
  // The largest bytes keep 6 * step within float32. The smallest of `noclip` can still be exported
  // as `ocp`, whose byte is smaller by 2. An all-zero group has byte 0.
  uint8_t Byte(double amax) const {
    if (amax == 0.0) return 0;
    const int byte = FloorLog2(amax) + kE8m0Bias;
    return static_cast<uint8_t>(noclip_ ? std::clamp(byte, 2, 253) : std::clamp(byte - 2, 0, 252));
  }
  double Step(uint8_t byte) const { return noclip_ ? DecodeE8m0(byte) / 3.0 : DecodeE8m0(byte); }

  const bool noclip_;
};

}  // namespace

std::unique_ptr<const NumberFormat> CreateMxfp4Format(ScaleRule rule) {
  return std::make_unique<Mxfp4Format>(rule == ScaleRule::kNoclip);
}

}  // namespace quantd::compute
