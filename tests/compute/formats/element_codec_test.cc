#include "compute/formats/element_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace quantd::compute {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr double kLargestDouble = std::numeric_limits<double>::max();
constexpr double kTinyDouble = std::numeric_limits<double>::denorm_min();

std::vector<uint8_t> CodesOf(const std::vector<double>& values, double factor = 1.0) {
  std::vector<uint8_t> codes(values.size());
  EncodeE2m1(values.data(), static_cast<int64_t>(values.size()), factor, codes.data());
  return codes;
}

std::vector<double> E2m1Values() {
  std::vector<uint8_t> codes(16);
  for (int i = 0; i < 16; ++i) codes[i] = static_cast<uint8_t>(i);
  std::vector<double> values(16);
  DecodeE2m1(codes.data(), 16, 1.0, values.data());
  return values;
}

TEST(E2m1, DecodesTheStandardsTable) {
  EXPECT_THAT(E2m1Values(),
              ElementsAre(0, .5, 1, 1.5, 2, 3, 4, 6, -0.0, -.5, -1, -1.5, -2, -3, -4, -6));
}

TEST(E2m1, EveryCodeSurvivesARoundTripIncludingTheSignOfZero) {
  const std::vector<uint8_t> codes = CodesOf(E2m1Values());
  for (int code = 0; code < 16; ++code) EXPECT_EQ(codes[code], code);
}

TEST(E2m1, TiesGoToTheEvenCodeAndLargeMagnitudesSaturate) {
  EXPECT_THAT(CodesOf({0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0}), ElementsAre(0, 2, 2, 4, 4, 6, 6));
  EXPECT_THAT(CodesOf({-0.25, -0.75, -5.0}), ElementsAre(8, 10, 14));
  EXPECT_THAT(CodesOf({5.0000001, 7.0, 1e300, kLargestDouble}), Each(7));
  EXPECT_THAT(CodesOf({-kLargestDouble}), ElementsAre(15));
  EXPECT_THAT(CodesOf({kTinyDouble, 0.24999}), Each(0));
}

TEST(E2m1, EncodesToTheNearestValue) {
  const std::vector<double> table = E2m1Values();
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(-8.0, 8.0);
  for (int i = 0; i < 10'000; ++i) {
    const double value = uniform(random);
    double least = std::numeric_limits<double>::infinity();
    for (double entry : table) least = std::min(least, std::abs(entry - value));
    EXPECT_EQ(std::abs(table[CodesOf({value})[0]] - value), least) << value;
  }
}

TEST(E2m1, SquaredErrorIsThatOfEncodingAndDecoding) {
  std::mt19937_64 random(2);
  std::normal_distribution<double> normal(0.0, 3.0);
  for (int count : {1, 7, 8, 16, 33}) {
    std::vector<double> values(count);
    for (double& value : values) value = normal(random);
    const double step = 0.7;
    const std::vector<uint8_t> codes = CodesOf(values, 1.0 / step);
    std::vector<double> decoded(count);
    DecodeE2m1(codes.data(), count, step, decoded.data());
    double sum = 0.0;
    for (int i = 0; i < count; ++i) sum += (decoded[i] - values[i]) * (decoded[i] - values[i]);
    EXPECT_NEAR(SquaredErrorE2m1(values.data(), count, step), sum, 1e-12 * sum);
  }
}

TEST(E4m3, DecodesTheStandardsLandmarks) {
  EXPECT_EQ(DecodeE4m3(0x00), 0.0);
  EXPECT_EQ(DecodeE4m3(0x01), 0x1p-9);    // smallest subnormal
  EXPECT_EQ(DecodeE4m3(0x07), 0x1.cp-7);  // largest subnormal
  EXPECT_EQ(DecodeE4m3(0x08), 0x1p-6);    // smallest normal
  EXPECT_EQ(DecodeE4m3(0x38), 1.0);
  EXPECT_EQ(DecodeE4m3(0x7e), 448.0);
  EXPECT_EQ(DecodeE4m3(0xfe), -448.0);
  EXPECT_TRUE(std::isnan(DecodeE4m3(0x7f)));
  EXPECT_TRUE(std::isnan(DecodeE4m3(0xff)));
}

TEST(E4m3, EveryFiniteCodeSurvivesARoundTrip) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    EXPECT_EQ(EncodeE4m3(DecodeE4m3(static_cast<uint8_t>(code))), code);
  }
}

TEST(E4m3, MidpointsGoToTheEvenCodeAndTheirNeighboursToTheNearest) {
  for (int code = 0; code + 1 < 0x7f; ++code) {
    const double low = DecodeE4m3(static_cast<uint8_t>(code));
    const double high = DecodeE4m3(static_cast<uint8_t>(code + 1));
    const double middle = (low + high) / 2;
    EXPECT_EQ(EncodeE4m3(middle), code % 2 == 0 ? code : code + 1) << code;
    EXPECT_EQ(EncodeE4m3(std::nextafter(middle, 0.0)), code);
    EXPECT_EQ(EncodeE4m3(std::nextafter(middle, 500.0)), code + 1);
    EXPECT_EQ(EncodeE4m3(-middle), 0x80 | (code % 2 == 0 ? code : code + 1));
  }
}

TEST(E4m3, SaturatesAndNeverMakesNan) {
  EXPECT_EQ(EncodeE4m3(464.0), 0x7e);
  EXPECT_EQ(EncodeE4m3(kLargestDouble), 0x7e);
  EXPECT_EQ(EncodeE4m3(-1e30), 0xfe);
  EXPECT_EQ(EncodeE4m3(kTinyDouble), 0x00);
  EXPECT_EQ(EncodeE4m3(-kTinyDouble), 0x80);
}

TEST(E8m0, IsAPowerOfTwo) {
  EXPECT_EQ(DecodeE8m0(0), 0x1p-127);
  EXPECT_EQ(DecodeE8m0(127), 1.0);
  EXPECT_EQ(DecodeE8m0(254), 0x1p127);
  EXPECT_TRUE(std::isnan(DecodeE8m0(255)));
}

TEST(FloorLog2, IsExactAtPowersOfTwoAndForSubnormals) {
  EXPECT_EQ(FloorLog2(8.0), 3);
  EXPECT_EQ(FloorLog2(std::nextafter(8.0, 0.0)), 2);
  EXPECT_EQ(FloorLog2(0.75), -1);
  EXPECT_EQ(FloorLog2(kTinyDouble), -1074);
}

TEST(MaxMagnitude, SeesEveryPositionAndSign) {
  EXPECT_EQ(MaxMagnitude(nullptr, 0), 0.0);
  for (int count = 1; count < 40; ++count) {
    for (int at = 0; at < count; ++at) {
      std::vector<double> values(count, 0.5);
      values[at] = -3.0;
      EXPECT_EQ(MaxMagnitude(values.data(), count), 3.0);
    }
  }
}

}  // namespace
}  // namespace quantd::compute
