// The sum of x x^T behind full second moments, by every way of multiplying that the device has.
#include <gmock/gmock.h>

#include <algorithm>
#include <set>
#include <utility>

#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/gram_pairs.h"
#include "compute/backend/cuda/gram_sum.h"
#include "compute/second_moment/second_moment.h"
#include "tests/compute/backend/cuda/cuda_test.h"

namespace quantd::compute {
namespace {

using Products = CudaGramSum::Products;

class CudaGramTest : public CudaTest {
 protected:
  CudaStream& stream() { return static_cast<CudaStream&>(*cuda_.stream); }

  std::vector<Products> AllProducts() {
    std::vector<Products> all = {Products::kBlas};
    if (CudaGramSum::ChooseProducts(0).value() == Products::kHopper) {
      all.push_back(Products::kHopper);
    }
    return all;
  }

  // A sum that begins with a matrix of its own, so that reading that is tested, too.
  std::unique_ptr<CudaGramSum> NewSum(Products products, int64_t cols) {
    return CudaGramSum::Create(stream(), products, cols, Start(cols)).value();
  }
  static std::vector<double> Start(int64_t cols) {
    std::vector<double> start(cols * cols);
    for (int64_t i = 0; i < cols; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        start[i * cols + j] = start[j * cols + i] = static_cast<double>((i * 31 + j * 17) % 101);
      }
    }
    return start;
  }

  // Slices of heavy-tailed bfloat16 tokens.
  static std::vector<uint16_t> Tokens(int64_t cols, int64_t slices) {
    const Tensor x = Random({slices * kSliceTokens, cols}, 11, DType::kF32);
    const int64_t pitch = CudaGramSum::PitchOf(cols);
    std::vector<uint16_t> tokens(slices * kSliceTokens * pitch);
    for (int64_t i = 0; i < x.elements(); ++i) {
      tokens[i / cols * pitch + i % cols] = FloatToBf16(x.as<float>()[i]);
    }
    return tokens;
  }
  static std::vector<double> Expected(int64_t cols, int64_t rows,
                                      const std::vector<uint16_t>& tokens) {
    std::vector<double> sum = Start(cols);
    const int64_t pitch = CudaGramSum::PitchOf(cols);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t i = 0; i < cols; ++i) {
        const double left = Bf16ToFloat(tokens[t * pitch + i]);
        for (int64_t j = 0; j < cols; ++j) {
          sum[i * cols + j] += left * Bf16ToFloat(tokens[t * pitch + j]);
        }
      }
    }
    return sum;
  }
};

TEST_F(CudaGramTest, PairsAreAllTilesOnce) {
  for (int side = 1; side < 40; ++side) {
    std::set<std::pair<int, int>> tiles;
    for (const GramPair& pair : GramPairs(side)) {
      for (const int own : pair.own) {
        if (own < 0) continue;
        const int i = std::max(own, pair.shared);
        const int j = std::min(own, pair.shared);
        EXPECT_TRUE(tiles.insert({i, j}).second) << i << ", " << j << " of " << side;
        EXPECT_TRUE(own == pair.shared || IsGramTileTransposed(side, i, j) == (own < pair.shared));
      }
    }
    EXPECT_EQ(static_cast<int64_t>(tiles.size()), GramTileCount(side));
  }
}

TEST_F(CudaGramTest, AddsSlices) {
  for (const int64_t cols : {5, 130, 300, 700}) {
    const std::vector<uint16_t> tokens = Tokens(cols, 2);
    const std::vector<double> expected = Expected(cols, 2 * kSliceTokens, tokens);
    for (const Products products : AllProducts()) {
      SCOPED_TRACE(testing::Message() << cols << " by " << static_cast<int>(products));
      const auto rows = Upload(stream(), absl::MakeConstSpan(tokens)).value();
      const auto together = NewSum(products, cols);
      ASSERT_TRUE(together->AddNarrow(rows.data(), 2).ok());
      const std::vector<double> sum = together->Sum().value();
      EXPECT_LE(RelativeDistance(sum, expected), 1e-6);
      // One by one: the same bits.
      const auto apart = NewSum(products, cols);
      for (int64_t slice = 0; slice < 2; ++slice) {
        const int64_t at = slice * kSliceTokens * CudaGramSum::PitchOf(cols);
        ASSERT_TRUE(apart->AddNarrow(rows.data() + at, 1).ok());
      }
      EXPECT_TRUE(apart->Sum().value() == sum);
    }
  }
}

TEST_F(CudaGramTest, AddsSlicesInFloat64) {
  for (const int64_t cols : {5, 130, 400}) {
    const Tensor x = Random({kSliceTokens, cols}, 12);
    std::vector<double> expected = Start(cols);
    for (int64_t t = 0; t < kSliceTokens; ++t) {
      const auto row = x.as<double>().subspan(t * cols, cols);
      for (int64_t i = 0; i < cols * cols; ++i) expected[i] += row[i / cols] * row[i % cols];
    }
    const auto rows = Upload(stream(), x.as<double>()).value();
    const auto sum = NewSum(Products::kBlas, cols);
    ASSERT_TRUE(sum->AddWide(rows.data()).ok());
    EXPECT_LE(RelativeDistance(sum->Sum().value(), expected), 1e-13) << cols;
  }
}

// What cannot fit is refused with the sizes, and the stream is good for other work.
TEST_F(CudaGramTest, RefusesWhatTheDeviceCannotHold) {
  EXPECT_EQ(
      DeviceBuffer<double>::Allocate(stream(), GramElements(int64_t{1} << 20)).status().code(),
      absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(NewSum(Products::kBlas, 5)->Sum().ok());
}

}  // namespace
}  // namespace quantd::compute
