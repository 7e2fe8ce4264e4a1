// Rounding to nearest: CUDA against the CPU.
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/compute/backend/cuda/transform_test.h"

namespace quantd::compute {
namespace {

class CudaRtnTest : public CudaTransformTest {
 protected:
  struct Rounded {
    std::vector<uint8_t> codes;
    std::vector<uint8_t> scales;
    std::optional<float> global;
    std::vector<double> decoded;
    std::vector<double> dequantized;

    friend bool operator==(const Rounded&, const Rounded&) = default;
  };

  static std::vector<uint8_t> Bytes(Side& side, const DeviceTensor& tensor) {
    const Tensor host = side.backend->Download(*side.stream, tensor).value();
    const auto bytes = host.bytes();
    std::vector<uint8_t> copy(bytes.size());
    std::memcpy(copy.data(), bytes.data(), bytes.size());
    return copy;
  }

  // Codes of both devices under the CPU's transform.
  std::pair<Rounded, Rounded> Round(const NumberFormat& format, TransformKind kind, int64_t size,
                                    const Tensor& weight) {
    const BlockTransform transform = Solve(kind, size, weight);
    return {RoundOn(cuda_, format, ToCuda(transform), weight),
            RoundOn(cpu_, format, transform, weight)};
  }
  static Rounded RoundOn(Side& side, const NumberFormat& format, const BlockTransform& transform,
                         const Tensor& weight) {
    const QuantizedWeight q =
        side.backend->RoundToNearest(*side.stream, format, transform, side.Upload(weight)).value();
    return {Bytes(side, q.codes), Bytes(side, q.scales), q.global_scale, side.Values(q.decoded),
            side.Values(q.dequantized)};
  }

  static double ShareOfEqual(const std::vector<double>& a, const std::vector<double>& b) {
    if (a.size() != b.size()) return 0.0;
    size_t equal = 0;
    for (size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i] ? 1 : 0;
    return static_cast<double>(equal) / static_cast<double>(a.size());
  }

  static std::vector<Recipe> Formats() {
    std::vector<Recipe> recipes;
    const auto add = [&](Recipe recipe) { recipes.push_back(ResolveRecipe(recipe).value()); };
    for (const ScaleRule rule : {ScaleRule::kNoclip, ScaleRule::kOcp}) {
      add({.format = Format::kMxfp4, .scale_rule = rule});
    }
    for (const ScaleRule rule : {ScaleRule::kMse, ScaleRule::kAmax}) {
      add({.format = Format::kNvfp4, .scale_rule = rule});
    }
    for (const Format format : {Format::kInt2, Format::kInt3, Format::kInt4, Format::kInt8}) {
      for (const ScaleRule rule :
           {ScaleRule::kAbsmax, ScaleRule::kCompressedTensors, ScaleRule::kGaussianMse}) {
        for (const int64_t group : {16, 32, 48, 96}) {
          add({.format = format, .scale_rule = rule, .group_size = group});
        }
        add({.format = format, .scale_rule = rule, .granularity = Granularity::kRow});
      }
    }
    add({.format = Format::kFp8, .granularity = Granularity::kRow});
    add({.format = Format::kFp8, .granularity = Granularity::kBlock128});
    return recipes;
  }
};

// Without a transform the codes come from the same numbers: every bit is equal.
TEST_F(CudaRtnTest, IdentityIsBitEqual) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{37, 96}, {257, 480}}) {
    const Tensor w = Random({rows, cols}, 11);
    for (const Recipe& recipe : Formats()) {
      const auto format = NumberFormat::Create(recipe, cols);
      const auto [cuda, cpu] = Round(*format, TransformKind::kIdentity, 32, w);
      EXPECT_TRUE(cuda == cpu) << ToJson(recipe) << " " << rows << "x" << cols << ": "
                               << ShareOfEqual(cuda.decoded, cpu.decoded) << " of values equal";
    }
  }
}

// With one, sums may differ in their last bit, and so may what lies on the edge between two codes.
TEST_F(CudaRtnTest, TransformedIsEqualButForTies) {
  for (const TransformKind kind :
       {TransformKind::kHadamard, TransformKind::kRandom, TransformKind::kWus}) {
    for (const int64_t size : {4, 16, 32, 48, 64, 96}) {
      if (kind == TransformKind::kHadamard && (size & (size - 1)) != 0) continue;
      const Tensor w = Random({101, 192}, 12);
      for (const Recipe& recipe : Formats()) {
        const auto format = NumberFormat::Create(recipe, 192);
        const auto [cuda, cpu] = Round(*format, kind, size, w);
        const std::string what = absl::StrCat(ToJson(recipe), " ", size);
        EXPECT_EQ(cuda.global, cpu.global) << what;
        EXPECT_GE(ShareOfEqual(cuda.decoded, cpu.decoded), 0.9999) << what;
        EXPECT_LT(RelativeDistance(cuda.decoded, cpu.decoded), 1e-3) << what;
        EXPECT_LT(RelativeDistance(cuda.dequantized, cpu.dequantized), 1e-3) << what;
      }
    }
  }
}

TEST_F(CudaRtnTest, SameBitsTwice) {
  const Tensor w = Random({333, 512}, 13);
  for (const Recipe& recipe : {ResolveRecipe({.format = Format::kNvfp4}).value(),
                               ResolveRecipe({.format = Format::kMxfp4}).value()}) {
    const auto format = NumberFormat::Create(recipe, 512);
    EXPECT_TRUE(Round(*format, TransformKind::kWush, 32, w).first ==
                Round(*format, TransformKind::kWush, 32, w).first);
  }
}

TEST_F(CudaRtnTest, ZerosAndExtremes) {
  Tensor w = Random({40, 128}, 14);
  double* values = w.as<double>().data();
  for (int64_t i = 0; i < w.elements(); ++i) {
    if (i % 128 < 32) values[i] = i % 2 == 0 ? 0.0 : -0.0;
    if (i / 128 == 3) values[i] *= 1e-300;
    if (i / 128 == 5) values[i] *= 1e-40;
  }
  for (const Recipe& recipe : Formats()) {
    if (recipe.granularity == Granularity::kGroup && 128 % recipe.group_size != 0) continue;
    const auto format = NumberFormat::Create(recipe, 128);
    const auto [cuda, cpu] = Round(*format, TransformKind::kIdentity, 32, w);
    EXPECT_TRUE(cuda == cpu) << ToJson(recipe);
  }
}

}  // namespace
}  // namespace quantd::compute
