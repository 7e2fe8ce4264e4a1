#include "compute/formats/fp8_format.h"

#include <algorithm>
#include <cstring>

#include "compute/formats/element_codec.h"

namespace quantd::compute {
namespace {

class Fp8Format final : public NumberFormat {
 public:
  explicit Fp8Format(ScaleGrid grid) : grid_(grid) {
    if (grid.rows > 1) activations_ = std::make_unique<Fp8Format>(ScaleGrid{1, grid.cols});
  }

  FormatSpec spec() const override {
    return {.rule = FormatSpec::Rule::kFp8,
            .bits = 8,
            .grid_rows = grid_.rows,
            .grid_cols = grid_.cols};
  }
  ScaleGrid grid() const override { return grid_; }
  int element_bits() const override { return 8; }
  DType scale_dtype() const override { return DType::kF32; }
  DType packed_dtype() const override { return DType::kF8E4M3; }
  std::optional<int> element_mantissa_bits() const override { return 3; }
  int scale_mantissa_bits() const override { return 23; }
  const NumberFormat& activation_format() const override {
    return activations_ ? *activations_ : *this;
  }
  std::optional<float> GlobalScale(double /*amax*/) const override { return std::nullopt; }

  void ComputeScales(const double* values, int64_t rows, int64_t cols,
                     std::optional<float> /*global*/, double* scales) const override {
    for (int64_t r = 0; r < rows; r += grid_.rows) {
      for (int64_t c = 0; c < cols; c += grid_.cols) {
        const int64_t width = std::min(grid_.cols, cols - c);
        double amax = 0.0;
        for (int64_t row = r; row < std::min(r + grid_.rows, rows); ++row) {
          amax = std::max(amax, MaxMagnitude(values + row * cols + c, width));
        }
        *scales++ = Scale(amax);
      }
    }
  }

  void Round(const double* values, int64_t count, double scale, uint8_t* codes) const override {
    EncodeE4m3(values, count, scale > 0.0 ? 1.0 / scale : 0.0, codes);
  }
  void Decode(const uint8_t* codes, int64_t count, double scale, double* values) const override {
    DecodeE4m3(codes, count, scale, values);
  }

  void PackScales(absl::Span<const double> scales, std::optional<float> /*global*/,
                  std::byte* packed) const override {
    for (size_t i = 0; i < scales.size(); ++i) {
      const auto scale = static_cast<float>(scales[i]);
      std::memcpy(packed + 4 * i, &scale, sizeof(scale));
    }
  }
  void UnpackScales(const std::byte* packed, std::optional<float> /*global*/,
                    absl::Span<double> scales) const override {
    for (size_t i = 0; i < scales.size(); ++i) {
      float scale;
      std::memcpy(&scale, packed + 4 * i, sizeof(scale));
      scales[i] = scale;
    }
  }

 private:
  // At most what keeps 448 * scale within float32, and no subnormal, whose few bits would leave
  // values far beyond 448 to saturate.
  static double Scale(double amax) {
    constexpr double kSmallest = 0x1p-126;
    constexpr double kLargest = 0x1.24924p119;  // 2^128 / 448, rounded down to a float32
    if (amax == 0.0) return 0.0;
    return static_cast<float>(std::clamp(amax / kE4m3Max, kSmallest, kLargest));
  }

  const ScaleGrid grid_;
  std::unique_ptr<const Fp8Format> activations_;
};

}  // namespace

std::unique_ptr<const NumberFormat> CreateFp8Format(ScaleGrid grid) {
  return std::make_unique<Fp8Format>(grid);
}

}  // namespace quantd::compute
