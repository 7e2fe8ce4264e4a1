#include "compute/backend/cpu/transform_solver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <Eigen/LU>
#include <Eigen/SVD>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/jacobi_svd.h"
#include "compute/formats/safetensors.h"

namespace quantd::compute {
namespace {

using Eigen::MatrixXd;
using ::testing::HasSubstr;
using RowMajorMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

MatrixXd Normal(int64_t rows, int64_t cols, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  MatrixXd matrix(rows, cols);
  for (double& value : matrix.reshaped()) value = normal(random);
  return matrix;
}

// A layer whose columns and inputs differ in scale and correlate.
struct Layer {
  RowMajorMatrix weight;  // R x C
  RowMajorMatrix inputs;  // T x C
  RowMajorMatrix moment() const {
    return inputs.transpose() * inputs / static_cast<double>(inputs.rows());
  }
};

Layer MakeLayer(int64_t rows, int64_t cols, int64_t tokens, uint64_t seed) {
  Layer layer;
  layer.weight = 0.02 * Normal(rows, cols, seed);
  layer.inputs =
      Normal(tokens, cols, seed + 1) + Normal(tokens, 4, seed + 2) * Normal(4, cols, seed + 3);
  for (int64_t c = 0; c < cols; c += 7) layer.inputs.col(c) *= 12.0;
  return layer;
}

std::vector<double> BlocksOf(const RowMajorMatrix& moment, int64_t b) {
  std::vector<double> blocks;
  for (int64_t begin = 0; begin < moment.cols(); begin += b) {
    const RowMajorMatrix block = moment.block(begin, begin, b, b);
    blocks.insert(blocks.end(), block.data(), block.data() + b * b);
  }
  return blocks;
}

absl::StatusOr<HostTransform> Solve(const Layer& layer, TransformKind kind, Solver solver,
                                    int64_t b, double damping = 1e-3, int threads = 2) {
  WorkerPool pool(threads);
  const RowMajorMatrix moment = layer.moment();
  const std::vector<double> blocks = BlocksOf(moment, b);
  const absl::Span<const double> full(moment.data(), moment.size());
  return SolveBlockTransforms(
      pool,
      {.kind = kind,
       .solver = solver,
       .block_size = b,
       .damping = damping,
       .rows = layer.weight.rows(),
       .cols = layer.weight.cols(),
       .weight = absl::Span<const double>(layer.weight.data(), layer.weight.size()),
       .second_moment = solver == Solver::kMarginal ? absl::Span<const double>(blocks) : full});
}

MatrixXd Tx(const HostTransform& transform, int64_t block, int64_t b) {
  using RowMajorFloat = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Eigen::Map<const RowMajorFloat>(transform.tx.data() + block * b * b, b, b).cast<double>();
}

MatrixXd Tw(const HostTransform& transform, int64_t block, int64_t b) {
  return Eigen::Map<const RowMajorMatrix>(transform.tw.data() + block * b * b, b, b);
}

double RelativeDifference(const MatrixXd& a, const MatrixXd& b) {
  return (a - b).norm() / b.norm();
}

void ExpectInverseTransposes(const HostTransform& transform, int64_t b) {
  for (int64_t block = 0; block < static_cast<int64_t>(transform.tx.size()) / (b * b); ++block) {
    const MatrixXd product = Tw(transform, block, b).transpose() * Tx(transform, block, b);
    EXPECT_LT((product - MatrixXd::Identity(b, b)).norm(), 1e-9 * transform.condition_max);
  }
}

TEST(JacobiSvd, AgreesWithEigen) {
  for (int n : {1, 2, 5, 16, 32}) {
    const MatrixXd g = Normal(n + 3, n, 100 + n);
    const RightSingular svd = SolveRightSingular(g);
    const Eigen::JacobiSVD<MatrixXd> reference(g);
    EXPECT_LT((svd.values - reference.singularValues()).norm(),
              1e-13 * reference.singularValues()[0]);
    EXPECT_LT((svd.vectors.transpose() * svd.vectors - MatrixXd::Identity(n, n)).norm(), 1e-13 * n);
    const MatrixXd product = g * svd.vectors;
    EXPECT_LT(
        (product.transpose() * product - MatrixXd(svd.values.cwiseAbs2().asDiagonal())).norm(),
        1e-12 * g.squaredNorm());
  }
}

TEST(JacobiSvd, SmallSingularValuesOfScaledColumnsKeepTheirDigits) {
  const MatrixXd rotation = SolveRightSingular(Normal(8, 8, 9)).vectors;
  Eigen::VectorXd scales(8);
  for (int i = 0; i < 8; ++i) scales[i] = std::pow(10.0, -3 * i);
  // Orthogonal columns of known lengths over 21 orders of magnitude.
  const RightSingular svd = SolveRightSingular(rotation * scales.asDiagonal());
  for (int i = 0; i < 8; ++i) EXPECT_NEAR(svd.values[i] / scales[i], 1.0, 1e-12);
}

TEST(JacobiSvd, DegenerateMatricesHaveOrthogonalVectors) {
  MatrixXd one = MatrixXd::Zero(6, 6);
  one.col(2).setConstant(3.0);
  for (const MatrixXd& g :
       {MatrixXd(MatrixXd::Zero(6, 6)), MatrixXd(MatrixXd::Identity(6, 6)), one,
        MatrixXd(Normal(6, 2, 1) * Normal(2, 6, 2)), MatrixXd(1e-200 * Normal(6, 6, 3))}) {
    const RightSingular svd = SolveRightSingular(g);
    EXPECT_TRUE(svd.values.allFinite());
    EXPECT_LT((svd.vectors.transpose() * svd.vectors - MatrixXd::Identity(6, 6)).norm(), 1e-13);
    for (int i = 0; i < 6; ++i) {
      Eigen::Index largest;
      svd.vectors.col(i).cwiseAbs().maxCoeff(&largest);
      EXPECT_GT(svd.vectors(largest, i), 0.0);
    }
  }
}

TEST(MarginalSolver, BalancesWeightsAndActivations) {
  const int64_t b = 32;
  const double damping = 1e-3;
  const Layer layer = MakeLayer(70, 96, 400, 1);
  const RowMajorMatrix moment = layer.moment();
  for (TransformKind kind : {TransformKind::kWus, TransformKind::kWush}) {
    const absl::StatusOr<HostTransform> transform =
        Solve(layer, kind, Solver::kMarginal, b, damping);
    ASSERT_TRUE(transform.ok()) << transform.status();
    EXPECT_EQ(transform->damped_blocks, 0);
    EXPECT_EQ(transform->damping_max, damping);
    for (int64_t block = 0; block < 3; ++block) {
      const MatrixXd w = layer.weight.middleCols(block * b, b);
      MatrixXd mw = w.transpose() * w / 70.0;
      MatrixXd mx = moment.block(block * b, block * b, b, b);
      mw.diagonal().array() += damping * mw.trace() / b;
      mx.diagonal().array() += damping * mx.trace() / b;
      const MatrixXd tx = Tx(*transform, block, b);
      const MatrixXd tw = Tw(*transform, block, b);
      const MatrixXd weights = tw * mw * tw.transpose();
      const MatrixXd activations = tx * mx * tx.transpose();
      EXPECT_LT(RelativeDifference(weights, activations), 1e-5);  // of float32 rounding
      EXPECT_NEAR(weights.trace(), transform->trace[block], 1e-5 * weights.trace());
      if (kind == TransformKind::kWush) {  // H S H^T: every diagonal entry is tr(S) / B
        for (double entry : weights.diagonal())
          EXPECT_NEAR(entry, weights.trace() / b, 1e-5 * weights.trace() / b);
      } else {  // S itself
        MatrixXd off = weights;
        off.diagonal().setZero();
        EXPECT_LT(off.norm(), 1e-5 * weights.norm());
      }
    }
    ExpectInverseTransposes(*transform, b);
  }
}

TEST(MarginalSolver, DoesNotDependOnTheNumberOfThreads) {
  const Layer layer = MakeLayer(40, 256, 300, 5);
  const auto one = Solve(layer, TransformKind::kWush, Solver::kMarginal, 16, 1e-2, 1);
  const auto four = Solve(layer, TransformKind::kWush, Solver::kMarginal, 16, 1e-2, 4);
  ASSERT_TRUE(one.ok() && four.ok());
  EXPECT_EQ(one->tx, four->tx);
  EXPECT_EQ(one->tw, four->tw);
}

TEST(MarginalSolver, MoreDampingIsAddedWhereAskedForTooLittle) {
  // An indefinite moment, as rounding or a user's file may bring it.
  const int64_t b = 8;
  RowMajorMatrix moment = MatrixXd::Identity(b, b);
  moment(3, 3) = -0.05;
  const RowMajorMatrix weight = Normal(20, b, 6);
  WorkerPool pool(1);
  const absl::StatusOr<HostTransform> transform = SolveBlockTransforms(
      pool, {.kind = TransformKind::kWush,
             .block_size = b,
             .damping = 1e-3,
             .rows = 20,
             .cols = b,
             .weight = absl::Span<const double>(weight.data(), weight.size()),
             .second_moment = absl::Span<const double>(moment.data(), moment.size())});
  ASSERT_TRUE(transform.ok()) << transform.status();
  EXPECT_EQ(transform->damped_blocks, 1);
  EXPECT_NEAR(transform->damping_max, 0.1, 1e-12);

  moment(3, 3) = -50.0;
  const absl::StatusOr<HostTransform> refused = SolveBlockTransforms(
      pool, {.kind = TransformKind::kWush,
             .block_size = b,
             .damping = 1e-3,
             .rows = 20,
             .cols = b,
             .weight = absl::Span<const double>(weight.data(), weight.size()),
             .second_moment = absl::Span<const double>(moment.data(), moment.size())});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.status().ToString(),
              HasSubstr("second_moment: expected a positive semidefinite"));
}

struct Degenerate {
  std::string name;
  Layer layer;
};

std::vector<Degenerate> DegenerateLayers() {
  std::vector<Degenerate> cases;
  cases.push_back({"FewRows", MakeLayer(3, 64, 200, 11)});
  cases.push_back({"OneTokenOneRow", MakeLayer(1, 64, 1, 12)});
  Layer low_rank = MakeLayer(40, 64, 100, 13);
  low_rank.weight = Normal(40, 2, 14) * Normal(2, 64, 15);
  low_rank.inputs = Normal(100, 3, 16) * Normal(3, 64, 17);
  cases.push_back({"LowRank", low_rank});
  Layer dead = MakeLayer(40, 64, 100, 18);
  dead.weight.leftCols(32).setZero();
  dead.inputs.rightCols(32).setZero();
  cases.push_back({"DeadBlocks", dead});
  Layer dead_columns = MakeLayer(40, 64, 100, 19);
  dead_columns.inputs.col(3).setZero();
  dead_columns.weight.col(40).setZero();
  cases.push_back({"DeadColumns", dead_columns});
  Layer zero = MakeLayer(40, 64, 100, 20);
  zero.weight.setZero();
  zero.inputs.setZero();
  cases.push_back({"AllZero", zero});
  Layer tiny = MakeLayer(40, 64, 100, 21);
  tiny.weight *= 1e-30;
  tiny.inputs *= 1e-20;
  cases.push_back({"Tiny", tiny});
  return cases;
}

class DegenerateLayer
    : public ::testing::TestWithParam<std::tuple<size_t, Solver, TransformKind, int64_t>> {};

TEST_P(DegenerateLayer, GivesFiniteInvertibleTransforms) {
  const auto& [index, solver, kind, b] = GetParam();
  const Layer layer = DegenerateLayers()[index].layer;
  for (double damping : {1e-8, 1e-4, 1e-1}) {
    const absl::StatusOr<HostTransform> transform = Solve(layer, kind, solver, b, damping);
    ASSERT_TRUE(transform.ok()) << transform.status();
    for (float value : transform->tx) ASSERT_TRUE(std::isfinite(value));
    for (double value : transform->tw) ASSERT_TRUE(std::isfinite(value));
    EXPECT_TRUE(std::isfinite(transform->condition_max));
    EXPECT_EQ(transform->damped_blocks, 0);
    ExpectInverseTransposes(*transform, b);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, DegenerateLayer,
    ::testing::Combine(::testing::Range<size_t>(0, DegenerateLayers().size()),
                       ::testing::Values(Solver::kMarginal, Solver::kConditional),
                       ::testing::Values(TransformKind::kWus, TransformKind::kWush),
                       ::testing::Values<int64_t>(16, 32)),
    [](const auto& info) {
      return absl::StrCat(DegenerateLayers()[std::get<0>(info.param)].name, "_",
                          NameOf(std::get<1>(info.param)), "_", NameOf(std::get<2>(info.param)),
                          "_", std::get<3>(info.param));
    });

TEST(TransformSolver, RefusesTransformsBeyondFloat32) {
  Layer layer = MakeLayer(40, 32, 100, 30);
  layer.weight *= 1e60;
  layer.inputs *= 1e-60;
  const auto transform = Solve(layer, TransformKind::kWush, Solver::kMarginal, 32);
  EXPECT_EQ(transform.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(transform.status().ToString(), HasSubstr("does not fit float32"));
}

TEST(TransformSolver, RefusesSizesThatDoNotFit) {
  WorkerPool pool(1);
  const std::vector<double> values(64, 1.0);
  const auto solve = [&](BlockTransformProblem problem) {
    return SolveBlockTransforms(pool, problem).status().ToString();
  };
  EXPECT_THAT(solve({.kind = TransformKind::kHadamard, .block_size = 32, .cols = 48}),
              HasSubstr("multiple of 32"));
  EXPECT_THAT(solve({.kind = TransformKind::kWus,
                     .block_size = 8,
                     .rows = 9,
                     .cols = 8,
                     .weight = values,
                     .second_moment = values}),
              HasSubstr("weight: expected 9 x 8 elements; got 64"));
  EXPECT_THAT(solve({.kind = TransformKind::kWus,
                     .block_size = 4,
                     .rows = 8,
                     .cols = 8,
                     .weight = values,
                     .second_moment = values}),
              HasSubstr("second_moment: expected 32 elements; got 64"));
}

TEST(TransformSolver, DataFreeTransformsAreOrthogonal) {
  WorkerPool pool(2);
  for (TransformKind kind : {TransformKind::kHadamard, TransformKind::kRandom}) {
    const absl::StatusOr<HostTransform> transform =
        SolveBlockTransforms(pool, {.kind = kind, .block_size = 16, .seed = 7, .cols = 64});
    ASSERT_TRUE(transform.ok()) << transform.status();
    EXPECT_NEAR(transform->condition_max, 1.0, 1e-6);
    EXPECT_TRUE(transform->trace.empty());
    for (int64_t block = 0; block < 4; ++block) {
      const MatrixXd tx = Tx(*transform, block, 16);
      EXPECT_LT((tx * tx.transpose() - MatrixXd::Identity(16, 16)).norm(), 1e-5);
    }
    ExpectInverseTransposes(*transform, 16);
  }
}

TEST(TransformSolver, HadamardIsSylvesters) {
  WorkerPool pool(1);
  const auto transform =
      SolveBlockTransforms(pool, {.kind = TransformKind::kHadamard, .block_size = 4, .cols = 4});
  ASSERT_TRUE(transform.ok());
  EXPECT_THAT(transform->tx, ::testing::ElementsAre(.5, .5, .5, .5, .5, -.5, .5, -.5, .5, .5, -.5,
                                                    -.5, .5, -.5, -.5, .5));
}

TEST(TransformSolver, RandomRotationsFollowTheSeedAndDifferByBlock) {
  WorkerPool pool(1);
  const auto solve = [&](uint64_t seed) {
    return SolveBlockTransforms(
               pool, {.kind = TransformKind::kRandom, .block_size = 8, .seed = seed, .cols = 16})
        ->tx;
  };
  const std::vector<float> once = solve(1);
  EXPECT_EQ(once, solve(1));
  EXPECT_NE(once, solve(2));
  EXPECT_FALSE(std::equal(once.begin(), once.begin() + 64, once.begin() + 64));
}

// T^T T does not depend on the signs and the order that a singular value decomposition leaves open.
class ConditionalGolden
    : public ::testing::TestWithParam<std::tuple<std::string, std::string, std::string>> {};

TEST_P(ConditionalGolden, ReproducesThePublishedTransforms) {
  const auto& [name, format, kind] = GetParam();
  const auto file = SafetensorsFile::Open(QUANTD_GOLDEN_DIR "/wush_golden.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto read = [&](const std::string& tensor_name, int64_t cols) {
    const Tensor tensor = *file->Read(tensor_name);
    RowMajorMatrix matrix(tensor.elements() / cols, cols);
    ConvertToDouble(tensor.dtype(), tensor.bytes().data(), tensor.elements(), matrix.data());
    return matrix;
  };
  const int64_t b = format == "mxfp4" ? 32 : 16;
  const int64_t cols = file->header().Find(name + "/weight").value()->shape[1];
  const RowMajorMatrix weight = read(name + "/weight", cols);
  const RowMajorMatrix moment = read(name + "/second_moment", cols);
  const RowMajorMatrix golden =
      read(absl::StrCat(name, "/", format, ".", kind, ".rtn.transform"), b);
  WorkerPool pool(2);
  const absl::StatusOr<HostTransform> transform = SolveBlockTransforms(
      pool, {.kind = *ParseTransform(kind),
             .solver = Solver::kConditional,
             .block_size = b,
             .rows = weight.rows(),
             .cols = cols,
             .weight = absl::Span<const double>(weight.data(), weight.size()),
             .second_moment = absl::Span<const double>(moment.data(), moment.size())});
  ASSERT_TRUE(transform.ok()) << transform.status();
  EXPECT_EQ(transform->damping_max, kConditionalDamping);
  for (int64_t block = 0; block < cols / b; ++block) {
    const MatrixXd want = golden.middleRows(block * b, b);
    const MatrixXd got = Tx(*transform, block, b);
    EXPECT_LT(RelativeDifference(got.transpose() * got, want.transpose() * want), 1e-6) << block;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ConditionalGolden,
    ::testing::Combine(::testing::Values("outlier_64x128", "gauss_48x64", "rect_40x256"),
                       ::testing::Values("mxfp4", "nvfp4"), ::testing::Values("wus", "wush")),
    [](const auto& info) {
      return absl::StrCat(std::get<0>(info.param), "_", std::get<1>(info.param), "_",
                          std::get<2>(info.param));
    });

}  // namespace
}  // namespace quantd::compute
