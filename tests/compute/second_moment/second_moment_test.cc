#include "compute/second_moment/second_moment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <vector>

namespace quantd::compute {
namespace {

using testing::HasSubstr;

constexpr int64_t kCols = 12;

std::vector<double> RandomRows(int64_t rows, int seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<double> values(rows * kCols);
  for (double& value : values) value = normal(generator);
  return values;
}

// A sum of `folded` rows with `pending` more.
SecondMoment Moment(const MomentSpec& spec, const std::vector<double>& folded,
                    const std::vector<double>& pending) {
  SecondMoment moment = SecondMoment::Create(spec).value();
  moment.SetPending(folded);
  moment.FoldPending();
  moment.SetPending(pending);
  moment.AddTokens(static_cast<int64_t>(folded.size() + pending.size()) / kCols);
  return moment;
}

double NaiveMean(const std::vector<double>& rows, int64_t i, int64_t j) {
  double sum = 0.0;
  const auto tokens = static_cast<int64_t>(rows.size()) / kCols;
  for (int64_t t = 0; t < tokens; ++t) sum += rows[t * kCols + i] * rows[t * kCols + j];
  return sum / static_cast<double>(tokens);
}

std::vector<double> Concatenate(std::vector<double> a, const std::vector<double>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(MomentSpecTest, Validates) {
  EXPECT_TRUE((MomentSpec{.cols = 1}.Validate().ok()));
  EXPECT_FALSE((MomentSpec{.cols = 0}.Validate().ok()));
  EXPECT_FALSE((MomentSpec{.cols = (int64_t{1} << 20) + 1}.Validate().ok()));
  EXPECT_FALSE((MomentSpec{.block_size = 4, .cols = 8}.Validate().ok()));
  EXPECT_FALSE((MomentSpec{.cols = 8, .sample_rows = 4097}.Validate().ok()));
  MomentSpec blocks = {.layout = MomentLayout::kBlockDiagonal, .block_size = 4, .cols = 8};
  EXPECT_TRUE(blocks.Validate().ok());
  EXPECT_EQ(blocks.SumElements(), 32);
  blocks.block_size = 3;
  EXPECT_THAT(blocks.Validate().message(), HasSubstr("divisor of 8 columns; got 3"));
}

TEST(MomentSpecTest, ValidatesKinds) {
  const auto message = [](const MomentSpec& spec) {
    return std::string(spec.Validate().message());
  };
  EXPECT_EQ(message({.kind = MomentKind::kWeighted, .cols = 8}), "");
  EXPECT_EQ(message({.kind = MomentKind::kCross, .cols = 8, .paired_cols = 8}), "");
  const MomentSpec residual = {.kind = MomentKind::kResidual, .cols = 8, .paired_cols = 3};
  EXPECT_EQ(message(residual), "");
  EXPECT_EQ(residual.SumElements(), 24);
  EXPECT_EQ(residual.TokenValues(), 11);
  EXPECT_THAT(message({.cols = 8, .paired_cols = 8}), HasSubstr("expected 0 for SECOND_MOMENT"));
  EXPECT_THAT(message({.kind = MomentKind::kCross, .cols = 8, .paired_cols = 4}),
              HasSubstr("paired_cols: expected 8"));
  EXPECT_THAT(message({.kind = MomentKind::kResidual, .cols = 8}), HasSubstr("paired_cols"));
  EXPECT_THAT(
      message({.kind = MomentKind::kResidual, .cols = 8, .paired_cols = (int64_t{1} << 20) + 1}),
      HasSubstr("paired_cols"));
  EXPECT_THAT(message({.kind = MomentKind::kCross,
                       .layout = MomentLayout::kBlockDiagonal,
                       .block_size = 4,
                       .cols = 8,
                       .paired_cols = 8}),
              HasSubstr("layout: expected full"));
}

TEST(SecondMomentTest, MeansCountPendingRows) {
  const std::vector<double> folded = RandomRows(20, 1);
  const std::vector<double> pending = RandomRows(7, 2);
  const SecondMoment moment = Moment({.cols = kCols}, folded, pending);
  const std::vector<double> all = Concatenate(folded, pending);
  const Tensor full = moment.FullMean().value();
  const Tensor blocks = moment.BlockDiagonalMean(4).value();
  for (int64_t i = 0; i < kCols; ++i) {
    for (int64_t j = 0; j < kCols; ++j) {
      EXPECT_NEAR(full.as<double>()[i * kCols + j], NaiveMean(all, i, j), 1e-14);
      if (i / 4 == j / 4) {
        EXPECT_NEAR(blocks.as<double>()[i * 4 + j % 4], NaiveMean(all, i, j), 1e-14);
      }
    }
  }
}

TEST(SecondMomentTest, BlockLayoutAgreesWithFull) {
  const std::vector<double> rows = RandomRows(30, 3);
  const SecondMoment full = Moment({.cols = kCols}, rows, {});
  const SecondMoment blocks =
      Moment({.layout = MomentLayout::kBlockDiagonal, .block_size = 6, .cols = kCols}, {}, rows);
  for (const int64_t size : {2, 3, 6}) {
    const Tensor a = full.BlockDiagonalMean(size).value();
    const Tensor b = blocks.BlockDiagonalMean(size).value();
    for (int64_t i = 0; i < a.elements(); ++i) {
      EXPECT_NEAR(a.as<double>()[i], b.as<double>()[i], 1e-14);
    }
  }
  EXPECT_EQ(blocks.BlockDiagonalMean(4).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(blocks.FullMean().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(SecondMomentTest, NoTokensHaveNoMean) {
  const SecondMoment empty = SecondMoment::Create({.cols = kCols}).value();
  EXPECT_EQ(empty.FullMean().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(SecondMomentTest, MergeEqualsWhole) {
  const std::vector<double> a = RandomRows(15, 4);
  const std::vector<double> b = RandomRows(9, 5);
  const std::vector<double> c = RandomRows(6, 6);
  SecondMoment first = Moment({.cols = kCols}, a, b);
  const SecondMoment second = Moment({.cols = kCols}, {}, c);
  ASSERT_TRUE(first.Merge(second).ok());
  EXPECT_EQ(first.tokens(), 30);
  const Tensor mean = first.FullMean().value();
  const std::vector<double> all = Concatenate(Concatenate(a, b), c);
  for (int64_t i = 0; i < kCols; ++i) {
    for (int64_t j = 0; j < kCols; ++j) {
      EXPECT_NEAR(mean.as<double>()[i * kCols + j], NaiveMean(all, i, j), 1e-14);
    }
  }
}

TEST(SecondMomentTest, MergeRefusesAnotherSpec) {
  SecondMoment a = SecondMoment::Create({.cols = kCols}).value();
  const SecondMoment b = SecondMoment::Create({.cols = kCols, .sample_seed = 9}).value();
  EXPECT_EQ(a.Merge(b).code(), absl::StatusCode::kInvalidArgument);
}

// Tokens of 5 residual values and kCols inputs.
TEST(SecondMomentTest, PairedMeansCountPendingRowsAndMerge) {
  const MomentSpec spec = {.kind = MomentKind::kResidual, .cols = kCols, .paired_cols = 5};
  const int64_t values = spec.TokenValues();
  std::mt19937 generator(21);
  std::normal_distribution<double> normal;
  std::vector<double> rows(30 * values);
  for (double& value : rows) value = normal(generator);
  const auto part = [&](int64_t first, int64_t middle, int64_t last) {
    SecondMoment moment = SecondMoment::Create(spec).value();
    moment.SetPending({rows.begin() + first * values, rows.begin() + middle * values});
    moment.FoldPending();
    moment.SetPending({rows.begin() + middle * values, rows.begin() + last * values});
    moment.AddTokens(last - first);
    EXPECT_EQ(moment.pending_rows(), last - middle);
    return moment;
  };
  SecondMoment moment = part(0, 10, 14);
  ASSERT_TRUE(moment.Merge(part(14, 20, 27)).ok());
  ASSERT_TRUE(moment.Merge(part(27, 27, 30)).ok());
  moment.SetPending({});
  const Tensor mean = moment.FullMean().value();
  EXPECT_EQ(mean.shape(), (std::vector<int64_t>{5, kCols}));
  const Tensor unmerged = part(0, 20, 30).FullMean().value();
  for (int64_t i = 0; i < 5; ++i) {
    for (int64_t j = 0; j < kCols; ++j) {
      double want = 0.0;
      for (int64_t t = 0; t < 30; ++t) want += rows[t * values + i] * rows[t * values + 5 + j];
      EXPECT_NEAR(mean.as<double>()[i * kCols + j], want / 30, 1e-14);
      EXPECT_NEAR(unmerged.as<double>()[i * kCols + j], want / 30, 1e-14);
    }
  }
  EXPECT_EQ(moment.BlockDiagonalMean(4).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SecondMomentTest, WeightsAreTheDivisor) {
  const std::vector<double> rows = RandomRows(9, 30);
  SecondMoment weighted = Moment({.kind = MomentKind::kWeighted, .cols = kCols}, rows, {});
  EXPECT_THAT(weighted.FullMean().status().message(), HasSubstr("9 tokens have weight 0"));
  EXPECT_EQ(weighted.FullMean().status().code(), absl::StatusCode::kFailedPrecondition);
  weighted.AddWeight(4.5);
  const Tensor mean = weighted.FullMean().value();
  const Tensor plain = Moment({.cols = kCols}, rows, {}).FullMean().value();
  for (int64_t i = 0; i < mean.elements(); ++i) {
    EXPECT_NEAR(mean.as<double>()[i], 2 * plain.as<double>()[i], 1e-13);
  }
  SecondMoment twice = weighted;
  ASSERT_TRUE(twice.Merge(weighted).ok());
  EXPECT_EQ(twice.weight_sum(), 9.0);
}

TEST(SecondMomentTest, KindsDoNotMerge) {
  SecondMoment plain = SecondMoment::Create({.cols = kCols}).value();
  const SecondMoment weighted =
      SecondMoment::Create({.kind = MomentKind::kWeighted, .cols = kCols}).value();
  const absl::Status status = plain.Merge(weighted);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("WEIGHTED"));
}

TEST(SecondMomentTest, DigestIsOfTheMultisetOfChunks) {
  const std::vector<double> rows = RandomRows(4, 7);
  const auto chunk = [&](int64_t row) {
    return absl::MakeConstSpan(reinterpret_cast<const std::byte*>(rows.data() + row * kCols),
                               kCols * 8);
  };
  SecondMoment a = SecondMoment::Create({.cols = kCols}).value();
  SecondMoment b = a;
  SecondMoment c = a;
  a.AddChunkDigest(chunk(0));
  a.AddChunkDigest(chunk(1));
  b.AddChunkDigest(chunk(1));
  c.AddChunkDigest(chunk(0));
  EXPECT_NE(a.DigestHex(), b.DigestHex());
  ASSERT_TRUE(b.Merge(c).ok());
  EXPECT_EQ(a.DigestHex(), b.DigestHex());
  b.AddChunkDigest(chunk(0));  // a chunk twice is not the same as once
  EXPECT_NE(a.DigestHex(), b.DigestHex());

  // What travels beside a chunk counts, on its own side.
  const auto paired = [&](int64_t row, int64_t beside) {
    SecondMoment moment = SecondMoment::Create({.cols = kCols}).value();
    moment.AddChunkDigest(chunk(row), chunk(beside));
    return moment.DigestHex();
  };
  EXPECT_NE(paired(0, 1), c.DigestHex());
  EXPECT_NE(paired(0, 1), paired(1, 0));
  EXPECT_EQ(paired(0, 1), paired(0, 1));
}

TEST(SecondMomentTest, CountsDeadInputs) {
  std::vector<double> folded = RandomRows(5, 8);
  std::vector<double> pending = RandomRows(3, 9);
  for (int64_t t = 0; t < 5; ++t) folded[t * kCols + 2] = folded[t * kCols + 7] = 0.0;
  for (int64_t t = 0; t < 3; ++t) pending[t * kCols + 2] = 0.0;
  EXPECT_EQ(Moment({.cols = kCols}, folded, pending).DeadInputs(), 1);
  const MomentSpec blocks = {
      .layout = MomentLayout::kBlockDiagonal, .block_size = 3, .cols = kCols};
  EXPECT_EQ(Moment(blocks, folded, {}).DeadInputs(), 2);
}

TEST(FromMatrixTest, TakesSumsAndMeans) {
  const SecondMoment original = Moment({.cols = kCols}, RandomRows(25, 10), {});
  const Tensor mean = original.FullMean().value();
  const SecondMoment from_mean =
      SecondMoment::FromMatrix({.cols = kCols}, 25, true, mean.as<double>()).value();
  const SecondMoment from_sum =
      SecondMoment::FromMatrix({.cols = kCols}, 25, false, original.sum()).value();
  for (size_t i = 0; i < original.sum().size(); ++i) {
    EXPECT_NEAR(from_mean.sum()[i], original.sum()[i], 1e-13);
    EXPECT_EQ(from_sum.sum()[i], original.sum()[i]);
  }
}

TEST(FromMatrixTest, TakesEveryKind) {
  const MomentSpec cross = {.kind = MomentKind::kCross, .cols = 2, .paired_cols = 2};
  const SecondMoment asymmetric = SecondMoment::FromMatrix(cross, 4, true, {1, -2, 5, -1}).value();
  EXPECT_THAT(asymmetric.sum(), testing::ElementsAre(4, -8, 20, -4));
  const MomentSpec residual = {.kind = MomentKind::kResidual, .cols = 2, .paired_cols = 3};
  EXPECT_TRUE(SecondMoment::FromMatrix(residual, 4, false, {1, 2, 3, 4, 5, 6}).ok());
  EXPECT_FALSE(SecondMoment::FromMatrix(residual, 4, false, {1, 2, 3, 4}).ok());
  const MomentSpec weighted = {.kind = MomentKind::kWeighted, .cols = 2};
  const SecondMoment from_mean =
      SecondMoment::FromMatrix(weighted, 4, true, {1, 0, 0, 1}, 2.5).value();
  EXPECT_THAT(from_mean.sum(), testing::ElementsAre(2.5, 0, 0, 2.5));
  EXPECT_EQ(from_mean.tokens(), 4);
}

TEST(FromMatrixTest, RefusesWhatIsNoSecondMoment) {
  const MomentSpec spec = {.cols = 2};
  const auto refused = [&](int64_t tokens, std::vector<double> matrix, const std::string& why) {
    const absl::Status status = SecondMoment::FromMatrix(spec, tokens, true, matrix).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr(why));
  };
  refused(0, {1, 0, 0, 1}, "tokens");
  refused(5, {1, 0, 0}, "4 elements");
  refused(5, {1, 0, 0, std::numeric_limits<double>::quiet_NaN()}, "finite");
  refused(5, {-1, 0, 0, 1}, "diagonal");
  refused(5, {1, 0.5, -0.5, 1}, "symmetric");
  const auto refused_weights = [&](MomentKind kind, double weight_sum) {
    const MomentSpec weighted = {.kind = kind, .cols = 2};
    const absl::Status status =
        SecondMoment::FromMatrix(weighted, 5, true, {1, 0, 0, 1}, weight_sum).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("weight_sum"));
  };
  refused_weights(MomentKind::kWeighted, 0.0);
  refused_weights(MomentKind::kWeighted, -1.0);
  refused_weights(MomentKind::kWeighted, std::numeric_limits<double>::infinity());
  refused_weights(MomentKind::kSecondMoment, 5.0);
  // Rounding of single-precision matrices is no asymmetry.
  EXPECT_TRUE(SecondMoment::FromMatrix(spec, 5, true, {1, 0.5, 0.5000001, 1}).ok());
}

}  // namespace
}  // namespace quantd::compute
