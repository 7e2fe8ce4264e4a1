#include "compute/formats/number_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/formats/element_codec.h"
#include "tests/compute/formats/relative_error.h"
#include "tests/compute/normal_values.h"

namespace quantd::compute {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr double kLargestFloat = std::numeric_limits<float>::max();

Recipe Resolved(Format format, std::optional<ScaleRule> rule = std::nullopt,
                std::optional<Granularity> granularity = std::nullopt, int64_t group = 0) {
  Recipe recipe;
  recipe.format = format;
  recipe.scale_rule = rule;
  recipe.granularity = granularity;
  recipe.group_size = group;
  const absl::StatusOr<Recipe> resolved = ResolveRecipe(recipe);
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  return resolved.value_or(recipe);
}

// The whole way of a matrix into its stored form, the rows' runs one by one as methods do it.
EncodedMatrix Encode(const NumberFormat& format, const std::vector<double>& values, int64_t rows,
                     int64_t cols) {
  const ScaleGrid grid = format.grid();
  const int64_t scale_rows = (rows + grid.rows - 1) / grid.rows;
  const int64_t scale_cols = (cols + grid.cols - 1) / grid.cols;
  EncodedMatrix encoded;
  encoded.rows = rows;
  encoded.cols = cols;
  encoded.global_scale = format.GlobalScale(MaxMagnitude(values.data(), rows * cols));
  std::vector<double> scales(scale_rows * scale_cols);
  format.ComputeScales(values.data(), rows, cols, encoded.global_scale, scales.data());
  std::vector<uint8_t> codes(rows * cols);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; c += grid.cols) {
      format.Round(values.data() + r * cols + c, std::min(grid.cols, cols - c),
                   scales[r / grid.rows * scale_cols + c / grid.cols], codes.data() + r * cols + c);
    }
  }
  encoded.codes = *Tensor::Create(format.packed_dtype(), {rows, cols * format.element_bits() / 8});
  encoded.scales = *Tensor::Create(format.scale_dtype(), {scale_rows, scale_cols});
  PackCodes(codes, format.element_bits(), encoded.codes.bytes().data());
  format.PackScales(scales, encoded.global_scale, encoded.scales.bytes().data());

  std::vector<double> unpacked(scales.size());
  format.UnpackScales(encoded.scales.bytes().data(), encoded.global_scale,
                      absl::MakeSpan(unpacked));
  EXPECT_EQ(unpacked, scales) << "a scale does not survive its stored form";
  return encoded;
}

std::vector<double> Decode(const NumberFormat& format, const EncodedMatrix& encoded) {
  std::vector<double> values(encoded.rows * encoded.cols);
  const absl::Status status = DecodeMatrix(format, encoded, absl::MakeSpan(values));
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

struct Case {
  std::string name;
  Recipe recipe;
  double worst_relative_error;  // on Gaussian values
};

std::vector<Case> AllCases() {
  return {
      {"Mxfp4Ocp", Resolved(Format::kMxfp4, ScaleRule::kOcp), 0.02},
      {"Mxfp4Noclip", Resolved(Format::kMxfp4, ScaleRule::kNoclip), 0.02},
      {"Nvfp4Amax", Resolved(Format::kNvfp4, ScaleRule::kAmax), 0.012},
      {"Nvfp4Mse", Resolved(Format::kNvfp4, ScaleRule::kMse), 0.009},
      {"Int2GaussianMse", Resolved(Format::kInt2, ScaleRule::kGaussianMse), 0.14},
      {"Int2CompressedTensors", Resolved(Format::kInt2, ScaleRule::kCompressedTensors), 0.35},
      {"Int3GaussianMse", Resolved(Format::kInt3, ScaleRule::kGaussianMse), 0.045},
      {"Int3Absmax", Resolved(Format::kInt3, ScaleRule::kAbsmax), 0.08},
      {"Int4Absmax", Resolved(Format::kInt4, ScaleRule::kAbsmax), 0.015},
      {"Int4CompressedTensors", Resolved(Format::kInt4, ScaleRule::kCompressedTensors), 0.013},
      {"Int4GaussianMse", Resolved(Format::kInt4, ScaleRule::kGaussianMse), 0.013},
      {"Int4AbsmaxRow", Resolved(Format::kInt4, ScaleRule::kAbsmax, Granularity::kRow), 0.03},
      {"Int4Group256", Resolved(Format::kInt4, ScaleRule::kAbsmax, Granularity::kGroup, 256), 0.03},
      {"Int8Absmax", Resolved(Format::kInt8, ScaleRule::kAbsmax), 1e-4},
      {"Int8CompressedTensors", Resolved(Format::kInt8, ScaleRule::kCompressedTensors), 1e-4},
      {"Int8GaussianMse", Resolved(Format::kInt8, ScaleRule::kGaussianMse), 2e-4},
      {"Fp8Row", Resolved(Format::kFp8), 1e-3},
      {"Fp8Block", Resolved(Format::kFp8, std::nullopt, Granularity::kBlock128), 1e-3},
  };
}

class EveryFormat : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr int64_t kRows = 130;  // more than one 128-row block
  static constexpr int64_t kCols = 256;
  std::unique_ptr<const NumberFormat> format_ = NumberFormat::Create(GetParam().recipe, kCols);
};

TEST_P(EveryFormat, GaussianValuesComeBackWithinTheFormatsError) {
  const std::vector<double> values = NormalValues(kRows * kCols, 3, 0.02);
  const std::vector<double> decoded = Decode(*format_, Encode(*format_, values, kRows, kCols));
  EXPECT_LT(RelativeError(values, decoded), GetParam().worst_relative_error);
}

TEST_P(EveryFormat, EveryCodeDecodesAndRoundsToItselfAndPacksExactly) {
  const int bits = format_->element_bits();
  std::vector<uint8_t> codes;
  for (int code = 0; code < 1 << bits; ++code) {
    const bool nan = format_->packed_dtype() == DType::kF8E4M3 && (code & 0x7f) == 0x7f;
    codes.push_back(nan ? 0 : static_cast<uint8_t>(code));
  }
  while (codes.size() * bits % 8 != 0) codes.push_back(0);
  const auto count = static_cast<int64_t>(codes.size());
  for (double scale : {1.0, 0x1p-9, 3.0 / 7.0}) {
    std::vector<double> values(count);
    format_->Decode(codes.data(), count, scale, values.data());
    std::vector<uint8_t> again(count);
    format_->Round(values.data(), count, scale, again.data());
    EXPECT_EQ(again, codes) << scale;
  }
  std::vector<std::byte> packed(count * bits / 8);
  PackCodes(codes, bits, packed.data());
  std::vector<uint8_t> unpacked(count);
  UnpackCodes(packed.data(), bits, absl::MakeSpan(unpacked));
  EXPECT_EQ(unpacked, codes);
}

TEST_P(EveryFormat, ExtremeGroupsStayFiniteAlsoInFloat32) {
  std::vector<double> magnitudes = {0.0, 1e-45, 1e-38, 1e-30,        1e-10,
                                    1.0, 1e10,  1e30,  kLargestFloat};
  for (double first : magnitudes) {
    for (double second : magnitudes) {
      std::vector<double> values = NormalValues(2 * kCols, 4, 0.3);
      for (int64_t i = 0; i < 2 * kCols; ++i) {
        values[i] = std::clamp(values[i], -1.0, 1.0) * (i < kCols ? first : second);
      }
      values[5] = first;
      values[kCols + 9] = -second;
      const std::vector<double> decoded = Decode(*format_, Encode(*format_, values, 2, kCols));
      for (double value : decoded) ASSERT_TRUE(std::isfinite(static_cast<float>(value)));
      FakeQuantize(*format_, 2, kCols, values.data());
      for (double value : values) ASSERT_TRUE(std::isfinite(static_cast<float>(value)));
    }
  }
}

TEST_P(EveryFormat, AnAllZeroMatrixDecodesToZero) {
  const std::vector<double> zeros(kRows * kCols, 0.0);
  const std::vector<double> decoded = Decode(*format_, Encode(*format_, zeros, kRows, kCols));
  if (GetParam().recipe.scale_rule == ScaleRule::kGaussianMse) {
    for (double value : decoded) ASSERT_EQ(value, 0.0);  // (code + 1/2) * 0
  } else {
    EXPECT_EQ(decoded, zeros);
  }
}

TEST_P(EveryFormat, FakeQuantizationIsEncodingInTheActivationFormat) {
  std::vector<double> values = NormalValues(3 * kCols, 5, 5.0);
  const NumberFormat& activations = format_->activation_format();
  const std::vector<double> expected = Decode(activations, Encode(activations, values, 3, kCols));
  FakeQuantize(*format_, 3, kCols, values.data());
  EXPECT_EQ(values, expected);
}

TEST_P(EveryFormat, TokensDoNotShareScalesWithOtherTokens) {
  // NVFP4's one global is the exception: hold it with the largest token, which stays.
  std::vector<double> values = NormalValues(2 * kCols, 6);
  values[0] = 50.0;
  std::vector<double> changed = values;
  for (int64_t i = kCols; i < 2 * kCols; ++i) changed[i] *= 7.0;
  FakeQuantize(*format_, 2, kCols, values.data());
  FakeQuantize(*format_, 2, kCols, changed.data());
  EXPECT_TRUE(std::equal(values.begin(), values.begin() + kCols, changed.begin()));
}

TEST_P(EveryFormat, DecodingRefusesWhatDoesNotFit) {
  const std::vector<double> values = NormalValues(2 * kCols, 7);
  std::vector<double> decoded(2 * kCols);
  EncodedMatrix good = Encode(*format_, values, 2, kCols);

  EncodedMatrix wrong{.rows = 2,
                      .cols = kCols,
                      .codes = good.codes.Clone(),
                      .scales = *Tensor::Create(format_->scale_dtype(), {2, 77}),
                      .global_scale = good.global_scale};
  EXPECT_THAT(DecodeMatrix(*format_, wrong, absl::MakeSpan(decoded)).ToString(),
              HasSubstr("weight_scale: expected"));
  wrong.scales = good.scales.Clone();
  wrong.codes = *Tensor::Create(DType::kI32, good.codes.shape());
  EXPECT_THAT(DecodeMatrix(*format_, wrong, absl::MakeSpan(decoded)).ToString(),
              HasSubstr("weight_packed: expected"));
  wrong.codes = good.codes.Clone();
  wrong.global_scale = good.global_scale ? std::nullopt : std::optional<float>(1.0f);
  EXPECT_THAT(DecodeMatrix(*format_, wrong, absl::MakeSpan(decoded)).ToString(),
              HasSubstr("weight_global_scale: expected"));
  wrong.global_scale = good.global_scale;
  // All ones: NaN in each scale dtype.
  std::memset(wrong.scales.bytes().data(), 0xff, wrong.scales.bytes().size());
  EXPECT_THAT(DecodeMatrix(*format_, wrong, absl::MakeSpan(decoded)).ToString(),
              HasSubstr("weight_scale: expected finite numbers"));
  EXPECT_THAT(DecodeMatrix(*format_, good, absl::MakeSpan(decoded).first(3)).ToString(),
              HasSubstr("values: expected room"));
}

INSTANTIATE_TEST_SUITE_P(Formats, EveryFormat, ::testing::ValuesIn(AllCases()),
                         [](const auto& info) { return info.param.name; });

std::vector<double> ScalesOf(const NumberFormat& format, const std::vector<double>& values,
                             std::optional<float> global = std::nullopt) {
  const ScaleGrid grid = format.grid();
  const auto cols = static_cast<int64_t>(values.size());
  std::vector<double> scales((cols + grid.cols - 1) / grid.cols);
  format.ComputeScales(values.data(), 1, cols, global, scales.data());
  return scales;
}

// One group with this largest magnitude.
std::vector<double> GroupWith(int64_t size, double amax) {
  std::vector<double> values(size, 0.1 * amax);
  values[size / 2] = -amax;
  return values;
}

TEST(Mxfp4, ScalesFollowTheirRules) {
  const auto ocp = NumberFormat::Create(Resolved(Format::kMxfp4, ScaleRule::kOcp), 32);
  const auto noclip = NumberFormat::Create(Resolved(Format::kMxfp4, ScaleRule::kNoclip), 32);
  EXPECT_EQ(ocp->GlobalScale(5.0), std::nullopt);
  EXPECT_EQ(noclip->GlobalScale(5.0), 3.0f);
  for (double amax : {1.0, 1.5, 1.999, 4.0, 5.9, 0.3, 1e-20}) {
    const double power = std::exp2(std::floor(std::log2(amax)));
    EXPECT_THAT(ScalesOf(*ocp, GroupWith(32, amax)), ElementsAre(power / 4));
    EXPECT_THAT(ScalesOf(*noclip, GroupWith(32, amax)), ElementsAre(power / 3));
  }
}

TEST(Mxfp4, NoclipNeverSaturatesAndOcpDoes) {
  const auto ocp = NumberFormat::Create(Resolved(Format::kMxfp4, ScaleRule::kOcp), 32);
  const auto noclip = NumberFormat::Create(Resolved(Format::kMxfp4, ScaleRule::kNoclip), 32);
  for (double amax = 1.0; amax < 2.0; amax += 1.0 / 64) {
    EXPECT_LT(amax / ScalesOf(*noclip, GroupWith(32, amax))[0], 6.0);
    EXPECT_GE(amax / ScalesOf(*noclip, GroupWith(32, amax))[0], 3.0 - 1e-12);
  }
  EXPECT_GT(1.75 / ScalesOf(*ocp, GroupWith(32, 1.75))[0], 6.0);
}

TEST(Mxfp4, NoclipIsOcpWithAByteLessByTwoAndAFactorOfFourThirds) {
  const auto ocp = NumberFormat::Create(Resolved(Format::kMxfp4, ScaleRule::kOcp), 32);
  const auto noclip = NumberFormat::Create(Resolved(Format::kMxfp4, ScaleRule::kNoclip), 32);
  for (int byte = 2; byte <= 253; ++byte) {
    const auto stored = static_cast<std::byte>(byte);
    const auto exported = static_cast<std::byte>(byte - 2);
    double scale;
    double exported_scale;
    noclip->UnpackScales(&stored, 3.0f, absl::MakeSpan(&scale, 1));
    ocp->UnpackScales(&exported, std::nullopt, absl::MakeSpan(&exported_scale, 1));
    EXPECT_DOUBLE_EQ(scale, exported_scale * 4.0 / 3.0);
  }
}

TEST(ScaleBytes, EveryStoredScaleSurvivesUnpackingAndPacking) {
  for (const Case& test : AllCases()) {
    const auto format = NumberFormat::Create(test.recipe, 256);
    if (SizeOf(format->scale_dtype()) != 1) continue;
    const std::optional<float> global = format->GlobalScale(0.37);
    // Finite, positive codes: all of E8M0 but NaN, the positive half of E4M3 but NaN.
    const int codes = format->scale_dtype() == DType::kF8E4M3 ? 127 : 255;
    for (int code = 0; code < codes; ++code) {
      const auto stored = static_cast<std::byte>(code);
      double scale;
      format->UnpackScales(&stored, global, absl::MakeSpan(&scale, 1));
      std::byte packed;
      format->PackScales(absl::MakeConstSpan(&scale, 1), global, &packed);
      EXPECT_EQ(packed, stored) << test.name << " " << code;
    }
  }
}

TEST(Nvfp4, GlobalPutsTheTensorsLargestGroupAtTheTopOfE4m3) {
  const auto format = NumberFormat::Create(Resolved(Format::kNvfp4, ScaleRule::kAmax), 16);
  for (double amax : {1e-30, 0.02, 1.0, 3.7, 6000.0, 1e30}) {
    const std::optional<float> global = format->GlobalScale(amax);
    ASSERT_TRUE(global.has_value());
    EXPECT_NEAR(*global * amax, 2688.0, 1e-3);
    const double scale = ScalesOf(*format, GroupWith(16, amax), global)[0];
    EXPECT_NEAR(scale * *global, 448.0, 1e-6);
    EXPECT_NEAR(scale * 6.0, amax, 1e-6 * amax);
  }
}

TEST(Nvfp4, ScaleIsTheRoundedAmaxAndNeverZeroForALiveGroup) {
  const auto format = NumberFormat::Create(Resolved(Format::kNvfp4, ScaleRule::kAmax), 16);
  const float global = 10.0f;
  EXPECT_THAT(ScalesOf(*format, GroupWith(16, 6.0), global),
              ElementsAre(DecodeE4m3(EncodeE4m3(10.0)) / 10.0));
  EXPECT_THAT(ScalesOf(*format, GroupWith(16, 1e-12), global), ElementsAre(0x1p-9 / 10.0));
  EXPECT_THAT(ScalesOf(*format, std::vector<double>(16, 0.0), global), ElementsAre(0.0));
  // Where the published code made NaN.
  EXPECT_THAT(ScalesOf(*format, GroupWith(16, 1e6), global), ElementsAre(448.0 / 10.0));
}

TEST(Nvfp4, SearchedScalesNeverLeaveAGroupWorseThanPlainOnes) {
  const auto plain = NumberFormat::Create(Resolved(Format::kNvfp4, ScaleRule::kAmax), 16);
  const auto search = NumberFormat::Create(Resolved(Format::kNvfp4, ScaleRule::kMse), 16);
  int better = 0;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    const std::vector<double> group = NormalValues(16, seed);
    const float global = 300.0f;
    const double plain_error =
        SquaredErrorE2m1(group.data(), 16, ScalesOf(*plain, group, global)[0]);
    const double search_error =
        SquaredErrorE2m1(group.data(), 16, ScalesOf(*search, group, global)[0]);
    ASSERT_LE(search_error, plain_error);
    better += search_error < plain_error ? 1 : 0;
  }
  EXPECT_GT(better, 250);
}

TEST(Integers, ScalesFollowTheirRules) {
  const std::vector<double> group = GroupWith(32, 2.0);
  const auto bf16 = [](double x) { return Bf16ToFloat(FloatToBf16(static_cast<float>(x))); };
  const auto scale = [&](Format format, ScaleRule rule) {
    return ScalesOf(*NumberFormat::Create(Resolved(format, rule), 32), group)[0];
  };
  EXPECT_EQ(scale(Format::kInt4, ScaleRule::kAbsmax), bf16(2.0 / 7));
  EXPECT_EQ(scale(Format::kInt8, ScaleRule::kAbsmax), bf16(2.0 / 127));
  EXPECT_EQ(scale(Format::kInt4, ScaleRule::kCompressedTensors), bf16(2.0 / 7.5));
  EXPECT_EQ(scale(Format::kInt8, ScaleRule::kCompressedTensors), bf16(2.0 / 127.5));
  const double rms = std::sqrt((31 * 0.04 + 4.0) / 32);
  EXPECT_EQ(scale(Format::kInt4, ScaleRule::kGaussianMse), bf16(2.51393 * 2 / 15 * rms));
  EXPECT_EQ(scale(Format::kInt8, ScaleRule::kGaussianMse), bf16(3.88494 * 2 / 255 * rms));
}

TEST(Integers, CodesAreTwosComplementWithTiesToEven) {
  const auto format = NumberFormat::Create(Resolved(Format::kInt4, ScaleRule::kAbsmax), 32);
  const std::vector<double> values = {0.5, 1.5, 2.5, -0.5, -1.5, 7.4, 100.0, -100.0};
  std::vector<uint8_t> codes(values.size());
  format->Round(values.data(), static_cast<int64_t>(values.size()), 1.0, codes.data());
  EXPECT_THAT(codes, ElementsAre(0, 2, 2, 0, 14, 7, 7, 8));
}

TEST(Integers, GaussianMseRoundsDownToTheMiddleOfACell) {
  const auto format = NumberFormat::Create(Resolved(Format::kInt4, ScaleRule::kGaussianMse), 32);
  const std::vector<double> values = {0.0, 0.99, -0.01, -1.0, 50.0, -50.0};
  std::vector<uint8_t> codes(values.size());
  format->Round(values.data(), 6, 1.0, codes.data());
  EXPECT_THAT(codes, ElementsAre(0, 0, 15, 15, 7, 8));
  std::vector<double> decoded(6);
  format->Decode(codes.data(), 6, 1.0, decoded.data());
  EXPECT_THAT(decoded, ElementsAre(0.5, 0.5, -0.5, -0.5, 7.5, -7.5));
}

TEST(Fp8, BlocksShareOneScaleAlsoAtTheEdges) {
  const Recipe recipe = Resolved(Format::kFp8, std::nullopt, Granularity::kBlock128);
  const auto format = NumberFormat::Create(recipe, 200);
  std::vector<double> values(130 * 200, 1.0);
  values[127 * 200 + 127] = 448.0;       // last of the first block
  values[129 * 200 + 199] = -2.0 * 448;  // the corner
  std::vector<double> scales(4);
  format->ComputeScales(values.data(), 130, 200, std::nullopt, scales.data());
  const double one = static_cast<float>(1.0 / 448);
  EXPECT_THAT(scales, ElementsAre(1.0, one, one, 2.0));
}

TEST(Fp8, NanElementsAreRefused) {
  const auto format = NumberFormat::Create(Resolved(Format::kFp8), 16);
  EncodedMatrix encoded = Encode(*format, NormalValues(16, 8), 1, 16);
  encoded.codes.as<uint8_t>()[3] = 0xff;
  std::vector<double> values(16);
  EXPECT_THAT(DecodeMatrix(*format, encoded, absl::MakeSpan(values)).ToString(),
              HasSubstr("NaN at element 3"));
}

TEST(Packing, CodesAreALittleEndianStreamOfBits) {
  const std::vector<uint8_t> codes = {1, 2, 3, 4, 5, 6, 7, 0};
  std::vector<std::byte> packed(3);
  PackCodes(codes, 3, packed.data());  // 0o07654321
  EXPECT_THAT(packed, ElementsAre(std::byte{0xd1}, std::byte{0x58}, std::byte{0x1f}));
  packed.resize(1);
  PackCodes({3, 0, 1, 2}, 2, packed.data());
  EXPECT_THAT(packed, ElementsAre(std::byte{0x93}));
}

TEST(Packing, EvenElementsAreInTheLowNibble) {
  const std::vector<uint8_t> codes = {0x1, 0x2, 0xf, 0x0};
  std::vector<std::byte> packed(2);
  PackCodes(codes, 4, packed.data());
  EXPECT_THAT(packed, ElementsAre(std::byte{0x21}, std::byte{0x0f}));
}

}  // namespace
}  // namespace quantd::compute
