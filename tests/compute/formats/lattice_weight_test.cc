#include "compute/formats/lattice_weight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace quantd::compute {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr int64_t kRows = 37;
constexpr int64_t kCols = 50;

LatticeWeight::Parts SomeParts(std::vector<int64_t> dead = {}, double scale = 1e-3) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  LatticeWeight::Parts parts = {.rows = kRows, .cols = kCols, .dead_columns = std::move(dead)};
  const int64_t live = kCols - static_cast<int64_t>(parts.dead_columns.size());
  for (int64_t i = 0; i < kRows * live; ++i) {
    parts.codes.push_back(static_cast<int32_t>(std::lround(2.0 * normal(random))));
  }
  for (int64_t c = 0; c < live; ++c) {
    parts.spacing.push_back(scale * std::exp(normal(random)));
    parts.col_scale.push_back(0.8 + 0.1 * normal(random));
  }
  for (int64_t r = 0; r < kRows; ++r) parts.row_scale.push_back(1.0 + 0.1 * normal(random));
  return parts;
}

std::shared_ptr<const LatticeWeight> Created(LatticeWeight::Parts parts) {
  auto weight = LatticeWeight::Create(std::move(parts));
  EXPECT_TRUE(weight.ok()) << weight.status();
  return *std::move(weight);
}

std::vector<double> Dequantized(const LatticeWeight& weight) {
  std::vector<double> values(weight.rows() * weight.cols());
  weight.Dequantize(0, weight.rows(), absl::MakeSpan(values));
  return values;
}

Tensor& Find(std::vector<NamedTensor>& tensors, absl::string_view name) {
  for (NamedTensor& named : tensors) {
    if (named.name == name) return named.tensor;
  }
  ADD_FAILURE() << "no tensor " << name;
  return tensors[0].tensor;
}

TEST(LatticeWeight, IsTheFormulaWithScalesOfFloat16) {
  const std::vector<int64_t> dead = {0, 7, 8, 49};
  const LatticeWeight::Parts parts = SomeParts(dead);
  const std::vector<double> values = Dequantized(*Created(SomeParts(dead)));
  int64_t live = 0;
  for (int64_t c = 0; c < kCols; ++c) {
    const bool is_dead = std::find(dead.begin(), dead.end(), c) != dead.end();
    for (int64_t r = 0; r < kRows; ++r) {
      const double exact = is_dead ? 0.0
                                   : parts.row_scale[r] * parts.codes[r * 46 + live] *
                                         parts.spacing[live] * parts.col_scale[live];
      ASSERT_NEAR(values[r * kCols + c], exact, std::abs(exact) * 0x1.01p-10) << r << ", " << c;
    }
    live += is_dead ? 0 : 1;
  }
  EXPECT_EQ(live, 46);
}

TEST(LatticeWeight, PacksAndUnpacksBitExactly) {
  for (const std::vector<int64_t>& dead : std::vector<std::vector<int64_t>>{{}, {3}, {0, 1, 49}}) {
    const auto weight = Created(SomeParts(dead));
    const auto tensors = weight->Pack(0, kRows);
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    const auto again = LatticeWeight::Unpack(*tensors, kRows, kCols);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ((*again)->codes(), weight->codes());
    EXPECT_EQ((*again)->dead_columns(), weight->dead_columns());
    EXPECT_EQ(Dequantized(**again), Dequantized(*weight));
  }
}

TEST(LatticeWeight, ARangeOfRowsDecodesAlone) {
  const auto weight = Created(SomeParts({5}));
  const std::vector<double> whole = Dequantized(*weight);
  const auto tensors = weight->Pack(10, 20);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  const auto part = LatticeWeight::Unpack(*tensors, 20, kCols);
  ASSERT_TRUE(part.ok()) << part.status();
  EXPECT_EQ(Dequantized(**part),
            std::vector<double>(whole.begin() + 10 * kCols, whole.begin() + 30 * kCols));
}

// A method that has its codes encoded already hands them over so, layer by layer.
TEST(LatticeWeight, CodedRowsAreTheSameWeight) {
  const auto weight = Created(SomeParts({5}));
  LatticeWeight::Parts parts = SomeParts({5});
  constexpr int64_t kFirst = 20;
  constexpr int64_t kLive = kCols - 1;
  const absl::Span<const int32_t> codes = parts.codes;
  for (const absl::Span<const int32_t> layer :
       {codes.subspan(0, kFirst * kLive), codes.subspan(kFirst * kLive)}) {
    parts.coded.push_back({.rows = static_cast<int64_t>(layer.size()) / kLive,
                           .coded = EncodeIntegers(layer, kLive).value()});
  }
  parts.codes.clear();
  const auto coded = Created(parts);
  for (const auto& [first, rows] :
       std::vector<std::pair<int64_t, int64_t>>{{0, kFirst}, {kFirst, kRows - kFirst}, {3, 9}}) {
    auto want = weight->Pack(first, rows).value();
    auto got = coded->Pack(first, rows).value();
    for (const NamedTensor& named : want) {
      EXPECT_EQ(Find(got, named.name).bytes(), named.tensor.bytes()) << named.name;
    }
  }
  EXPECT_EQ(coded->codes(), weight->codes());
  EXPECT_EQ(Dequantized(*coded), Dequantized(*weight));
  parts.coded.pop_back();
  EXPECT_THAT(LatticeWeight::Create(std::move(parts)).status().message(),
              HasSubstr("coded rows: expected 37 elements; got 20"));
}

TEST(LatticeWeight, KeepsItsPrecisionAtAnyScale) {
  for (const double scale : {1e-30, 1e-12, 1.0, 1e12, 1e30}) {
    const LatticeWeight::Parts parts = SomeParts({}, scale);
    const std::vector<double> values = Dequantized(*Created(SomeParts({}, scale)));
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      const double exact = parts.row_scale[i / kCols] * parts.codes[i] * parts.spacing[i % kCols] *
                           parts.col_scale[i % kCols];
      ASSERT_NEAR(values[i], exact, std::abs(exact) * 0x1.01p-10) << scale;
    }
  }
}

TEST(LatticeWeight, AllColumnsMayBeDeadAndAllScalesZero) {
  LatticeWeight::Parts parts = {.rows = 4, .cols = 3, .row_scale = {1, 2, 3, 4}};
  parts.dead_columns = {0, 1, 2};
  const auto dead = Created(parts);
  EXPECT_THAT(Dequantized(*dead), Each(0.0));
  EXPECT_TRUE(LatticeWeight::Unpack(*dead->Pack(0, 4), 4, 3).ok());

  parts = SomeParts();
  for (double& scale : parts.row_scale) scale = 0.0;
  for (double& scale : parts.col_scale) scale = 0.0;
  EXPECT_THAT(Dequantized(*Created(parts)), Each(0.0));
}

TEST(LatticeWeight, RefusesPartsThatDoNotFit) {
  const auto refused = [](auto change) {
    LatticeWeight::Parts parts = SomeParts({5, 6});
    change(parts);
    const auto weight = LatticeWeight::Create(std::move(parts));
    EXPECT_EQ(weight.status().code(), absl::StatusCode::kInvalidArgument);
  };
  using Parts = LatticeWeight::Parts;
  refused([](Parts& p) { p.codes.pop_back(); });
  refused([](Parts& p) { p.row_scale.pop_back(); });
  refused([](Parts& p) { p.col_scale.pop_back(); });
  refused([](Parts& p) { p.spacing.push_back(1.0); });
  refused([](Parts& p) { p.dead_columns = {6, 5}; });
  refused([](Parts& p) { p.dead_columns = {5, 50}; });
  refused([](Parts& p) { p.dead_columns = {5, 5}; });
  refused([](Parts& p) { p.dead_columns = {-1, 5}; });
  refused([](Parts& p) { p.row_scale[3] = std::nan(""); });
  refused([](Parts& p) { p.spacing[3] = std::numeric_limits<double>::infinity(); });
}

class HostileLattice : public ::testing::Test {
 protected:
  HostileLattice() : tensors_(*Created(SomeParts({2, 4}))->Pack(0, kRows)) {}

  void Expect(absl::StatusCode code, const std::string& what) {
    const auto weight = LatticeWeight::Unpack(tensors_, kRows, kCols);
    ASSERT_FALSE(weight.ok());
    EXPECT_EQ(weight.status().code(), code);
    EXPECT_THAT(std::string(weight.status().message()), HasSubstr(what));
  }

  std::vector<NamedTensor> tensors_;
};

TEST_F(HostileLattice, EveryTensorMustBeThereWithItsDtypeAndRank) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const std::string name = tensors_[i].name;
    tensors_[i].name = "other";
    Expect(absl::StatusCode::kInvalidArgument, absl::StrCat(name, ": missing"));
    tensors_[i].name = name;
    Tensor right = std::move(tensors_[i].tensor);
    tensors_[i].tensor = *Tensor::Create(DType::kF64, right.shape());
    Expect(absl::StatusCode::kInvalidArgument, absl::StrCat(name, ": expected"));
    tensors_[i].tensor = *Tensor::Create(right.dtype(), {1, 1, 1});
    Expect(absl::StatusCode::kInvalidArgument, absl::StrCat(name, ": expected"));
    tensors_[i].tensor = std::move(right);
  }
  EXPECT_TRUE(LatticeWeight::Unpack(tensors_, kRows, kCols).ok());
}

TEST_F(HostileLattice, AnotherShapeThanThatOfTheTensors) {
  for (const auto& [rows, cols] : {std::pair{kRows + 1, kCols},
                                   {kRows, kCols + 1},
                                   {kCols, kRows},
                                   {int64_t{1} << 20, int64_t{1} << 20}}) {
    EXPECT_FALSE(LatticeWeight::Unpack(tensors_, rows, cols).ok());
  }
}

TEST_F(HostileLattice, ScalesAndIndices) {
  Find(tensors_, "row_scale").as<uint16_t>()[1] = 0x7c00;
  Expect(absl::StatusCode::kInvalidArgument, "row_scale: expected finite numbers; got inf at");
  Find(tensors_, "row_scale").as<uint16_t>()[1] = 0;
  Find(tensors_, "col_scale").as<uint16_t>()[0] = 0x7e00;
  Expect(absl::StatusCode::kInvalidArgument, "col_scale");
  Find(tensors_, "col_scale").as<uint16_t>()[0] = 0;
  for (const float global : {0.0f, -1.0f, 1e-40f, std::numeric_limits<float>::infinity()}) {
    Find(tensors_, "weight_global_scale").as<float>()[0] = global;
    Expect(absl::StatusCode::kInvalidArgument, "weight_global_scale");
  }
  Find(tensors_, "weight_global_scale").as<float>()[0] = 1.0f;
  Find(tensors_, "dead_columns").as<uint16_t>()[1] = 2;
  Expect(absl::StatusCode::kInvalidArgument, "dead_columns: expected ascending");
  Find(tensors_, "dead_columns").as<uint16_t>()[1] = kCols;
  Expect(absl::StatusCode::kInvalidArgument, "dead_columns: expected ascending");
}

TEST_F(HostileLattice, ASmallFileCannotStandForAHugeMatrix) {
  constexpr int64_t kHuge = int64_t{1} << 20;
  Find(tensors_, "row_scale") = *Tensor::Create(DType::kF16, {kHuge});
  Find(tensors_, "dead_columns") = *Tensor::Create(DType::kU32, {0});
  Find(tensors_, "col_scale") = *Tensor::Create(DType::kF16, {kHuge});
  const auto weight = LatticeWeight::Unpack(tensors_, kHuge, kHuge);
  EXPECT_THAT(std::string(weight.status().message()), HasSubstr("weights a byte"));
}

TEST_F(HostileLattice, TheStreamIsCovered) {
  Find(tensors_, "z_stream").as<uint8_t>()[100] ^= 4;
  Expect(absl::StatusCode::kDataLoss, "z_stream");
}

}  // namespace
}  // namespace quantd::compute
