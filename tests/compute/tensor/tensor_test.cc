#include "compute/tensor/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace quantd::compute {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr DType kAll[] = {DType::kF64,    DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3,
                          DType::kF8E8M0, DType::kU8,  DType::kU16, DType::kU32,  DType::kU64,
                          DType::kI8,     DType::kI32, DType::kI64};

template <typename T>
const std::byte* Bytes(const std::vector<T>& values) {
  return reinterpret_cast<const std::byte*>(values.data());
}

TEST(DTypeTest, NamesParseBack) {
  for (const DType dtype : kAll) EXPECT_EQ(ParseDType(NameOf(dtype)).value(), dtype);
}

TEST(DTypeTest, UnknownNameListsTheKnown) {
  const absl::Status status = ParseDType("F4").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("F8_E4M3"));
  EXPECT_THAT(status.message(), HasSubstr("'F4'"));
}

TEST(DenseBytesTest, MultipliesDimensions) {
  EXPECT_EQ(DenseBytes(DType::kF32, {3, 5}).value(), 60);
  EXPECT_EQ(DenseBytes(DType::kF64, {}).value(), 8);
  EXPECT_EQ(DenseBytes(DType::kF64, {0, 7}).value(), 0);
}

TEST(DenseBytesTest, RefusesRankSignAndOverflow) {
  EXPECT_EQ(DenseBytes(DType::kU8, {1, 1, 1, 1, 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DenseBytes(DType::kU8, {2, -1}).status().code(), absl::StatusCode::kInvalidArgument);
  const int64_t huge = int64_t{1} << 40;
  EXPECT_EQ(DenseBytes(DType::kU8, {huge, huge}).status().code(), absl::StatusCode::kOutOfRange);
  // A zero dimension does not excuse a negative one.
  EXPECT_FALSE(DenseBytes(DType::kU8, {0, -1}).ok());
}

TEST(TensorTest, StartsAtZeroAndAligned) {
  const Tensor tensor = Tensor::Create(DType::kF32, {7, 11}).value();
  EXPECT_EQ(tensor.elements(), 77);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.bytes().data()) % 64, 0u);
  for (const float value : tensor.as<float>()) EXPECT_EQ(value, 0.0f);
}

TEST(TensorTest, TooLargeIsAnError) {
  const absl::Status status = Tensor::Create(DType::kF64, {int64_t{1} << 58}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

TEST(TensorTest, FromBytesChecksTheSize) {
  const std::vector<float> values = {1, 2, 3, 4};
  const absl::Status status = Tensor::FromBytes(DType::kF32, {5}, {Bytes(values), 16}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("expected 20 bytes"));
  EXPECT_THAT(Tensor::FromBytes(DType::kF32, {2, 2}, {Bytes(values), 16})->as<float>(),
              ElementsAre(1, 2, 3, 4));
}

TEST(TensorTest, CloneIsACopy) {
  Tensor original = Tensor::Create(DType::kI64, {2}).value();
  original.as<int64_t>()[1] = 5;
  const Tensor copy = original.Clone();
  original.as<int64_t>()[1] = 6;
  EXPECT_THAT(copy.as<int64_t>(), ElementsAre(0, 5));
}

TEST(ConversionTest, EveryHalfIsExact) {
  std::vector<uint16_t> halves(1 << 16);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> values(halves.size());
  ConvertToFloat(DType::kF16, Bytes(halves), static_cast<int64_t>(halves.size()), values.data());
  for (size_t i = 0; i < halves.size(); ++i) {
    const int exponent = static_cast<int>(i >> 10) & 31;
    const double mantissa = static_cast<double>(i & 1023);
    const double sign = i >> 15 ? -1.0 : 1.0;
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(values[i]), mantissa != 0);
      EXPECT_EQ(std::isinf(values[i]), mantissa == 0);
    } else if (exponent == 0) {
      EXPECT_EQ(values[i], sign * std::ldexp(mantissa, -24));
    } else {
      EXPECT_EQ(values[i], sign * std::ldexp(1024 + mantissa, exponent - 25));
    }
  }
}

TEST(ConversionTest, EveryBf16IsExactAndComesBack) {
  std::vector<uint16_t> all(1 << 16);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  std::vector<double> values(all.size());
  ConvertToDouble(DType::kBF16, Bytes(all), static_cast<int64_t>(all.size()), values.data());
  for (size_t i = 0; i < all.size(); ++i) {
    const uint16_t back = FloatToBf16(static_cast<float>(values[i]));
    if (std::isnan(values[i])) {
      EXPECT_TRUE(std::isnan(Bf16ToFloat(back)));
    } else {
      EXPECT_EQ(back, i);
    }
  }
}

TEST(ConversionTest, Bf16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f + 0x1p-8f), FloatToBf16(1.0f));           // tie, even below
  EXPECT_EQ(Bf16ToFloat(FloatToBf16(1.0f + 3 * 0x1p-8f)), 1.015625f);  // tie, even above
  EXPECT_EQ(Bf16ToFloat(FloatToBf16(1.0f + 0x1.1p-8f)), 1.0078125f);
  EXPECT_TRUE(std::isinf(Bf16ToFloat(FloatToBf16(std::numeric_limits<float>::max()))));
}

TEST(ConversionTest, WorksAtOddAddresses) {
  std::vector<std::byte> bytes(1 + 4 * 3);
  const float in[] = {1.5f, -2.0f, 3.25f};
  std::memcpy(bytes.data() + 1, in, sizeof(in));
  float out[3];
  ConvertToFloat(DType::kF32, bytes.data() + 1, 3, out);
  EXPECT_THAT(out, ElementsAre(1.5f, -2.0f, 3.25f));
}

TEST(FindNonFiniteTest, FindsTheFirst) {
  std::vector<float> values(5000, 1e38f);
  EXPECT_EQ(FindNonFinite(DType::kF32, Bytes(values), 5000), -1);
  values[4999] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(FindNonFinite(DType::kF32, Bytes(values), 5000), 4999);
  EXPECT_EQ(FindNonFinite(DType::kF32, Bytes(values), 4999), -1);
  values[1030] = -std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(FindNonFinite(DType::kF32, Bytes(values), 5000), 1030);
}

TEST(FindNonFiniteTest, KnowsEveryFloatDType) {
  const std::vector<double> f64 = {0, std::nan("")};
  EXPECT_EQ(FindNonFinite(DType::kF64, Bytes(f64), 2), 1);
  const std::vector<uint16_t> largest_half_then_inf = {0x7bff, 0xfc00};
  EXPECT_EQ(FindNonFinite(DType::kF16, Bytes(largest_half_then_inf), 2), 1);
  const std::vector<uint16_t> largest_bf16_then_nan = {0x7f7f, 0xffff};
  EXPECT_EQ(FindNonFinite(DType::kBF16, Bytes(largest_bf16_then_nan), 2), 1);
}

}  // namespace
}  // namespace quantd::compute
