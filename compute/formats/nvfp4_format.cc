#include "compute/formats/nvfp4_format.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "compute/formats/element_codec.h"

namespace quantd::compute {
namespace {

constexpr int64_t kGroup = 16;
// In order of preference, so that a tie keeps the scale nearest to the plain one.
constexpr int kOffsets[] = {0, 1, -1, 2, -2, -3, -4};

class Nvfp4Format final : public NumberFormat {
 public:
  explicit Nvfp4Format(bool search) {
    if (search) plain_ = std::make_unique<Nvfp4Format>(false);
  }

  FormatSpec spec() const override {
    return {.rule = plain_ ? FormatSpec::Rule::kNvfp4Mse : FormatSpec::Rule::kNvfp4Amax,
            .bits = 4,
            .grid_rows = 1,
            .grid_cols = kGroup};
  }
  ScaleGrid grid() const override { return {1, kGroup}; }
  int element_bits() const override { return 4; }
  DType scale_dtype() const override { return DType::kF8E4M3; }
  DType packed_dtype() const override { return DType::kU8; }
  std::optional<int> element_mantissa_bits() const override { return 1; }
  int scale_mantissa_bits() const override { return 3; }
  const NumberFormat& activation_format() const override { return plain_ ? *plain_ : *this; }

  std::optional<float> GlobalScale(double amax) const override {
    if (amax == 0.0) return 1.0f;
    // Not below what keeps 448 * 6 / global within float32, and a number that inverts.
    constexpr double kSmallest = 0x1p-116;
    constexpr double kLargest = 0x1p127;
    return static_cast<float>(std::clamp(kE4m3Max * kE2m1Max / amax, kSmallest, kLargest));
  }

  void ComputeScales(const double* values, int64_t rows, int64_t cols, std::optional<float> global,
                     double* scales) const override {
    const double divisor = global.value_or(1.0f);
    const int64_t groups = rows * (cols / kGroup);
    for (int64_t g = 0; g < groups; ++g) {
      const double* group = values + g * kGroup;
      const uint8_t plain = PlainCode(MaxMagnitude(group, kGroup), divisor);
      const uint8_t code = plain_ && plain != 0 ? BestCode(group, plain, divisor) : plain;
      scales[g] = DecodeE4m3(code) / divisor;
    }
  }

  void Round(const double* values, int64_t count, double scale, uint8_t* codes) const override {
    EncodeE2m1(values, count, scale > 0.0 ? 1.0 / scale : 0.0, codes);
  }
  void Decode(const uint8_t* codes, int64_t count, double scale, double* values) const override {
    DecodeE2m1(codes, count, scale, values);
  }

  void PackScales(absl::Span<const double> scales, std::optional<float> global,
                  std::byte* packed) const override {
    for (size_t i = 0; i < scales.size(); ++i) {
      packed[i] = static_cast<std::byte>(EncodeE4m3(scales[i] * global.value_or(1.0f)));
    }
  }
  void UnpackScales(const std::byte* packed, std::optional<float> global,
                    absl::Span<double> scales) const override {
    const double divisor = global.value_or(1.0f);
    for (size_t i = 0; i < scales.size(); ++i) {
      scales[i] = DecodeE4m3(static_cast<uint8_t>(packed[i])) / divisor;
    }
  }

 private:
  // A group with any value in it gets at least the smallest scale, else it would decode to zero.
  static uint8_t PlainCode(double amax, double global) {
    if (amax == 0.0) return 0;
    return std::max<uint8_t>(EncodeE4m3(amax * global / kE2m1Max), 1);
  }

  static uint8_t BestCode(const double* group, int plain, double global) {
    uint8_t best = static_cast<uint8_t>(plain);
    double least = std::numeric_limits<double>::infinity();
    for (int offset : kOffsets) {
      const int code = plain + offset;
      if (code < 1 || code > kE4m3MaxCode) continue;
      const double step = DecodeE4m3(static_cast<uint8_t>(code)) / global;
      const double error = SquaredErrorE2m1(group, kGroup, step);
      if (error < least) {
        least = error;
        best = static_cast<uint8_t>(code);
      }
    }
    return best;
  }

  std::unique_ptr<const Nvfp4Format> plain_;  // kMse only
};

}  // namespace

std::unique_ptr<const NumberFormat> CreateNvfp4Format(ScaleRule rule) {
  return std::make_unique<Nvfp4Format>(rule == ScaleRule::kMse);
}

}  // namespace quantd::compute
