#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "compute/formats/lattice_weight.h"
#include "compute/pipeline/pipeline.h"

namespace quantd::compute {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kRows = 33;
constexpr int64_t kCols = 70;

std::string LatticeRecipe() {
  return ToJson(
      ResolveRecipe(
          {.format = Format::kEntropyCoded, .method = Method::kWaterSic, .rate_bits = 2.0})
          .value());
}

std::shared_ptr<const LatticeWeight> SomeLattice(double scale) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  LatticeWeight::Parts parts = {.rows = kRows, .cols = kCols};
  parts.dead_columns = {1, 69};
  for (int64_t i = 0; i < kRows * (kCols - 2); ++i) {
    parts.codes.push_back(static_cast<int32_t>(std::lround(3.0 * normal(random))));
  }
  parts.spacing.assign(kCols - 2, scale);
  for (int64_t c = 0; c < kCols - 2; ++c) parts.col_scale.push_back(normal(random));
  for (int64_t r = 0; r < kRows; ++r) parts.row_scale.push_back(1.0 + 0.1 * normal(random));
  return LatticeWeight::Create(std::move(parts)).value();
}

std::vector<NamedTensor> Packed(const LatticeWeight& weight) {
  std::vector<NamedTensor> tensors = weight.Pack(0, kRows).value();
  Tensor shape = Tensor::Create(DType::kI64, {2}).value();
  shape.as<int64_t>()[0] = kRows;
  shape.as<int64_t>()[1] = kCols;
  tensors.push_back({"weight_shape", std::move(shape)});
  return tensors;
}

TEST(Dequantize, ALatticeIsRoundedToFloat32) {
  const auto weight = SomeLattice(0.01);
  const auto result = DequantizeResult(Packed(*weight), LatticeRecipe());
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->shape(), (std::vector<int64_t>{kRows, kCols}));
  std::vector<double> values(kRows * kCols);
  weight->Dequantize(0, kRows, absl::MakeSpan(values));
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    ASSERT_EQ(result->as<float>()[i], static_cast<float>(values[i])) << i;
  }
}

TEST(Dequantize, ALatticeBeyondFloat32IsRefused) {
  const auto result = DequantizeResult(Packed(*SomeLattice(1e38)), LatticeRecipe());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("overflows float32"));
}

TEST(Dequantize, ALatticeWithoutItsTensorsIsRefused) {
  std::vector<NamedTensor> tensors = Packed(*SomeLattice(0.01));
  tensors.erase(tensors.begin());
  EXPECT_THAT(std::string(DequantizeResult(tensors, LatticeRecipe()).status().message()),
              HasSubstr("z_stream: missing"));
}

}  // namespace
}  // namespace quantd::compute
