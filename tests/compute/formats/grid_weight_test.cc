#include "compute/formats/grid_weight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/compute/formats/relative_error.h"
#include "tests/compute/normal_values.h"

namespace quantd::compute {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

std::vector<double> Dequantized(const GridWeight& weight) {
  std::vector<double> values(weight.rows() * weight.cols());
  weight.Dequantize(0, weight.rows(), absl::MakeSpan(values));
  return values;
}

std::vector<double> RoundTrip(const GridSpec& spec, const std::vector<double>& values, int64_t rows,
                              int64_t cols) {
  const auto weight = GridWeight::Quantize(spec, values, rows, cols);
  EXPECT_TRUE(weight.ok()) << weight.status();
  return Dequantized(**weight);
}

// Errors of the tables, a value: compute/formats/gaussian_grid.cc.
double ErrorOfGrid(int bits, int dimension) {
  constexpr double kErrors[2][3] = {{0.117482, 0.034548, 0.009501}, {0.107596, 0.029770, 0.007808}};
  return kErrors[dimension - 1][bits - 2];
}

class EveryGrid : public ::testing::TestWithParam<std::tuple<int, int>> {
 protected:
  GridSpec Spec(int64_t group_size) const {
    return {.bits = std::get<0>(GetParam()),
            .dimension = std::get<1>(GetParam()),
            .group_size = group_size,
            .seed = 5};
  }
  double GridError() const { return ErrorOfGrid(std::get<0>(GetParam()), std::get<1>(GetParam())); }
};

TEST_P(EveryGrid, NormalWeightsHaveTheGridsError) {
  const std::vector<double> values = NormalValues(256 * 1024, 1, 0.02);
  for (const int64_t group_size : {256, 1024}) {
    const double error = RelativeError(values, RoundTrip(Spec(group_size), values, 256, 1024));
    EXPECT_NEAR(error, GridError(), 0.02 * GridError()) << group_size;
  }
}

TEST_P(EveryGrid, TheTransformMakesOtherWeightsNormal) {
  std::vector<double> values = NormalValues(64 * 1024, 2, 0.02);
  for (double& value : values) value = value * value * value;  // kurtosis 46
  const double error = RelativeError(values, RoundTrip(Spec(1024), values, 64, 1024));
  EXPECT_NEAR(error, GridError(), 0.1 * GridError());
}

TEST_P(EveryGrid, PacksWithoutWasteAndUnpacksBitExactly) {
  const GridSpec spec = Spec(64);
  const auto weight = GridWeight::Quantize(spec, NormalValues(9 * 192, 3, 0.02), 9, 192);
  ASSERT_TRUE(weight.ok()) << weight.status();
  const auto tensors = (*weight)->Pack(2, 5);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ((*tensors)[0].tensor.shape(), (std::vector<int64_t>{5, 192 * spec.bits / 8}));
  const auto again = GridWeight::Unpack(spec, *tensors, 5, 192);
  ASSERT_TRUE(again.ok()) << again.status();
  const std::vector<double> whole = Dequantized(**weight);
  EXPECT_EQ(Dequantized(**again),
            std::vector<double>(whole.begin() + 2 * 192, whole.begin() + 7 * 192));
}

TEST_P(EveryGrid, ScalesByPowersOfTwoExactly) {
  const std::vector<double> values = NormalValues(4 * 256, 4);
  const std::vector<double> decoded = RoundTrip(Spec(128), values, 4, 256);
  for (const int exponent : {-90, -20, 30, 90}) {
    std::vector<double> scaled = values;
    for (double& value : scaled) value = std::ldexp(value, exponent);
    std::vector<double> expected = decoded;
    for (double& value : expected) value = std::ldexp(value, exponent);
    EXPECT_EQ(RoundTrip(Spec(128), scaled, 4, 256), expected) << exponent;
  }
}

INSTANTIATE_TEST_SUITE_P(Grids, EveryGrid,
                         ::testing::Combine(::testing::Values(2, 3, 4), ::testing::Values(1, 2)));

TEST(GridWeight, ZerosStayZero) {
  EXPECT_THAT(RoundTrip({}, std::vector<double>(3 * 256, 0.0), 3, 256), Each(0.0));
}

TEST(GridWeight, SeedsGiveOtherSigns) {
  const std::vector<double> values = NormalValues(256, 6, 0.02);
  EXPECT_NE(RoundTrip({.seed = 1}, values, 1, 256), RoundTrip({.seed = 2}, values, 1, 256));
}

TEST(GridWeight, RefusesColumnsThatAreNoGroups) {
  EXPECT_EQ(GridWeight::Quantize({}, NormalValues(300, 1, 0.02), 1, 300).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(GridWeight, UnpackChecksEveryTensor) {
  const GridSpec spec = {.bits = 3, .dimension = 2, .group_size = 32};
  const auto unpacked = [&](auto change) {
    std::vector<NamedTensor> tensors =
        *(*GridWeight::Quantize(spec, NormalValues(4 * 96, 7, 0.02), 4, 96))->Pack(0, 4);
    change(tensors);
    return std::string(GridWeight::Unpack(spec, tensors, 4, 96).status().message());
  };
  EXPECT_EQ(unpacked([](auto&) {}), "");
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_THAT(unpacked([i](auto& tensors) { tensors[i].name += "_other"; }),
                HasSubstr("missing"));
    EXPECT_THAT(unpacked([i](auto& tensors) {
                  tensors[i].tensor = *Tensor::Create(DType::kU8, {1, 1, 1});
                }),
                HasSubstr("expected"));
  }
  EXPECT_THAT(unpacked([](auto& t) { t[1].tensor.template as<uint16_t>()[5] = 0x7c00; }),
              HasSubstr("weight_scale: expected finite numbers >= 0; got inf at element 5"));
  EXPECT_THAT(unpacked([](auto& t) { t[1].tensor.template as<uint16_t>()[5] = 0xbc00; }),
              HasSubstr("got -1 at element 5"));
  for (const float global : {0.0f, -2.0f, std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_THAT(unpacked([global](auto& t) { t[2].tensor.template as<float>()[0] = global; }),
                HasSubstr("weight_global_scale"));
  }
}

}  // namespace
}  // namespace quantd::compute
