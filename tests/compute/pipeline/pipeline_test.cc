#include "compute/pipeline/pipeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "compute/backend/cpu/cpu_backend.h"
#include "compute/tensor/checksum.h"

namespace quantd::compute {
namespace {

using testing::HasSubstr;

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMajorF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr int64_t kRows = 96;
constexpr int64_t kCols = 128;
constexpr int64_t kTokens = 300;

constexpr Format kFormats[] = {Format::kMxfp4, Format::kNvfp4, Format::kInt2, Format::kInt3,
                               Format::kInt4,  Format::kInt8,  Format::kFp8};
constexpr TransformKind kTransforms[] = {TransformKind::kIdentity, TransformKind::kHadamard,
                                         TransformKind::kRandom, TransformKind::kWus,
                                         TransformKind::kWush};

Tensor RandomWeight(int64_t rows, int64_t cols, int seed) {
  Tensor tensor = Tensor::Create(DType::kF32, {rows, cols}).value();
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (float& value : tensor.as<float>()) value = 0.02f * normal(generator);
  return tensor;
}

// Correlated activations with a few large columns.
Tensor RandomActivations(int64_t tokens, int64_t cols, int seed) {
  Tensor tensor = Tensor::Create(DType::kF32, {tokens, cols}).value();
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (int64_t t = 0; t < tokens; ++t) {
    const float shared = normal(generator);
    for (int64_t c = 0; c < cols; ++c) {
      tensor.as<float>()[t * cols + c] =
          (normal(generator) + 0.5f * shared) * (c % 37 == 0 ? 20.0f : 1.0f);
    }
  }
  return tensor;
}

RowMajor AsMatrix(const Tensor& tensor) {
  RowMajor matrix(tensor.dim(0), tensor.dim(1));
  ConvertToDouble(tensor.dtype(), tensor.bytes().data(), tensor.elements(), matrix.data());
  return matrix;
}

const Tensor* Find(const LayerResult& result, const std::string& name) {
  for (const NamedTensor& named : result.tensors) {
    if (named.name == name) return &named.tensor;
  }
  return nullptr;
}

std::string BytesOf(const Tensor& tensor) {
  return std::string(reinterpret_cast<const char*>(tensor.bytes().data()), tensor.bytes().size());
}

class PipelineTest : public testing::Test {
 protected:
  SecondMoment Statistic(const Tensor& x, MomentSpec spec = {.cols = kCols}) {
    auto accumulator = backend_->NewAccumulator(spec, nullptr).value();
    EXPECT_TRUE(accumulator->Add("s", 0, x.dtype(), x.dim(0), x.bytes()).ok());
    return accumulator->Snapshot().value();
  }
  absl::StatusOr<std::vector<LayerResult>> Run(const Recipe& recipe,
                                               const std::vector<LayerInput>& layers,
                                               const SecondMoment* statistic) {
    return QuantizeLayers(*backend_, ResolveRecipe(recipe).value(), layers,
                          {.second_moment = statistic}, nullptr, nullptr);
  }
  LayerResult RunOne(const Recipe& recipe, const Tensor& weight, const SecondMoment* statistic) {
    auto results = Run(recipe, {{.name = "layer", .weight = &weight}}, statistic);
    EXPECT_TRUE(results.ok()) << results.status();
    return std::move(results->front());
  }
  void ExpectError(const absl::Status& status, absl::StatusCode code, const std::string& message) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(status.message(), HasSubstr(message));
  }

  const std::unique_ptr<Backend> backend_ = NewCpuBackend(2);
  const Tensor weight_ = RandomWeight(kRows, kCols, 1);
  const Tensor activations_ = RandomActivations(kTokens, kCols, 2);
};

// Every figure of the report again, from the packed tensors alone.
TEST_F(PipelineTest, ReportIsWhatThePackedTensorsSay) {
  const SecondMoment statistic = Statistic(activations_);
  const RowMajor w = AsMatrix(weight_);
  const RowMajor x = AsMatrix(activations_);
  const RowMajor m = x.transpose() * x / kTokens;
  for (const Format kind : kFormats) {
    for (const TransformKind transform : kTransforms) {
      const std::string what = std::string(NameOf(kind)) + " " + std::string(NameOf(transform));
      const LayerResult result =
          RunOne({.format = kind, .transform = transform}, weight_, &statistic);
      const ErrorReport& report = result.report;
      const Recipe recipe = RecipeFromJson(report.recipe_json).value();

      const auto dequantized = DequantizeResult(result.tensors, report.recipe_json);
      ASSERT_TRUE(dequantized.ok()) << what << dequantized.status();
      const RowMajor d = w - AsMatrix(*dequantized);
      const double error = (d * m).cwiseProduct(d).sum() / (w * m).cwiseProduct(w).sum();
      EXPECT_NEAR(*report.relative_output_error_weight_only, error, 1e-4 * error) << what;
      EXPECT_NEAR(*report.sqnr_db_weight_only, -10 * std::log10(error), 1e-3) << what;
      EXPECT_NEAR(report.relative_weight_error, d.squaredNorm() / w.squaredNorm(),
                  1e-4 * report.relative_weight_error)
          << what;
      EXPECT_NEAR(report.max_abs_weight_error, d.cwiseAbs().maxCoeff(), 1e-6) << what;

      // Activations as an engine would quantize them.
      const auto format = NumberFormat::Create(recipe, kCols);
      RowMajor inputs = x;
      RowMajor decoded = AsMatrix(*dequantized);
      if (const Tensor* tx = Find(result, "input_transform")) {
        const int64_t size = tx->dim(1);
        for (int64_t k = 0; k < tx->dim(0); ++k) {
          const RowMajor t =
              Eigen::Map<const RowMajorF>(tx->as<float>().data() + k * size * size, size, size)
                  .cast<double>();
          inputs.middleCols(k * size, size) = x.middleCols(k * size, size) * t.transpose();
          decoded.middleCols(k * size, size) =
              decoded.middleCols(k * size, size).eval() * t.inverse();
        }
      }
      FakeQuantize(*format, kTokens, kCols, inputs.data());
      const RowMajor y = x * w.transpose();
      const double both = (y - inputs * decoded.transpose()).squaredNorm() / y.squaredNorm();
      EXPECT_NEAR(*report.relative_output_error_weight_and_activation, both, 2e-3 * both) << what;

      double bits = 0.0;
      for (const NamedTensor& named : result.tensors) {
        if (named.name == "weight_shape" || named.name == "input_global_scale") continue;
        bits += 8.0 * static_cast<double>(named.tensor.bytes().size()) / (kRows * kCols);
      }
      EXPECT_NEAR(report.bits_per_weight, bits, 1e-12) << what;
      for (const NamedTensor& named : result.tensors) {
        EXPECT_EQ(report.tensor_digests.at(named.name), ToHex(Sha256::Of(BytesOf(named.tensor))))
            << what;
      }
      EXPECT_EQ(report.tokens, kTokens);
      EXPECT_EQ(report.sample_rows, kTokens);
      EXPECT_EQ(report.statistic_digest, statistic.DigestHex());
      EXPECT_TRUE(nlohmann::json::accept(ToJson(report)));
    }
  }
}

TEST_F(PipelineTest, TensorsHaveTheDocumentedNamesAndShapes) {
  const SecondMoment statistic = Statistic(activations_);
  const LayerResult result =
      RunOne({.format = Format::kNvfp4, .transform = TransformKind::kWush}, weight_, &statistic);
  std::map<std::string, std::pair<DType, std::vector<int64_t>>> got;
  for (const NamedTensor& named : result.tensors) {
    got[named.name] = {named.tensor.dtype(), named.tensor.shape()};
  }
  const std::map<std::string, std::pair<DType, std::vector<int64_t>>> want = {
      {"weight_packed", {DType::kU8, {kRows, kCols / 2}}},
      {"weight_scale", {DType::kF8E4M3, {kRows, kCols / 16}}},
      {"weight_global_scale", {DType::kF32, {1}}},
      {"weight_shape", {DType::kI64, {2}}},
      {"input_transform", {DType::kF32, {kCols / 16, 16, 16}}},
      {"input_global_scale", {DType::kF32, {1}}}};
  EXPECT_EQ(got, want);
  EXPECT_THAT(Find(result, "weight_shape")->as<int64_t>(), testing::ElementsAre(kRows, kCols));
}

TEST_F(PipelineTest, BaselinesAreTheSameRecipesRunAlone) {
  const SecondMoment statistic = Statistic(activations_);
  const ErrorReport wush = RunOne({.transform = TransformKind::kWush}, weight_, &statistic).report;
  const ErrorReport identity =
      RunOne({.transform = TransformKind::kIdentity}, weight_, &statistic).report;
  const ErrorReport hadamard =
      RunOne({.transform = TransformKind::kHadamard}, weight_, &statistic).report;
  EXPECT_EQ(wush.baseline_identity_rtn.relative_output_error_weight_only,
            identity.relative_output_error_weight_only);
  EXPECT_EQ(wush.baseline_identity_rtn.relative_output_error_weight_and_activation,
            identity.relative_output_error_weight_and_activation);
  EXPECT_EQ(wush.baseline_hadamard_rtn.relative_output_error_weight_only,
            hadamard.relative_output_error_weight_only);
  EXPECT_EQ(wush.baseline_hadamard_rtn.relative_output_error_weight_and_activation,
            hadamard.relative_output_error_weight_and_activation);
  EXPECT_DOUBLE_EQ(*wush.baseline_hadamard_rtn.gain_weight_and_activation,
                   *hadamard.relative_output_error_weight_and_activation /
                       *wush.relative_output_error_weight_and_activation);
  EXPECT_DOUBLE_EQ(*identity.baseline_identity_rtn.gain_weight_only, 1.0);
  // The order that the method promises on data with outliers.
  EXPECT_LT(*wush.relative_output_error_weight_and_activation,
            *hadamard.relative_output_error_weight_and_activation);
  EXPECT_LT(*hadamard.relative_output_error_weight_and_activation,
            *identity.relative_output_error_weight_and_activation);
}

TEST_F(PipelineTest, PredictedLossOrdersTransforms) {
  const SecondMoment statistic = Statistic(activations_);
  const auto predicted = [&](Format format, TransformKind kind) {
    return RunOne({.format = format, .transform = kind}, weight_, &statistic).report.predicted_loss;
  };
  EXPECT_LT(*predicted(Format::kMxfp4, TransformKind::kWush),
            *predicted(Format::kMxfp4, TransformKind::kHadamard));
  EXPECT_FALSE(predicted(Format::kInt4, TransformKind::kWush).has_value());
}

// Layers that engines fuse: solved as one, then apart again.
TEST_F(PipelineTest, FusionGroupEqualsItsStackedRows) {
  const SecondMoment statistic = Statistic(activations_);
  const Tensor q = RandomWeight(64, kCols, 3);
  const Tensor k = RandomWeight(32, kCols, 4);
  Tensor stacked = Tensor::Create(DType::kF32, {96, kCols}).value();
  std::copy(q.as<float>().begin(), q.as<float>().end(), stacked.as<float>().begin());
  std::copy(k.as<float>().begin(), k.as<float>().end(), stacked.as<float>().begin() + 64 * kCols);
  for (const Format format : kFormats) {
    const Recipe recipe = {.format = format, .transform = TransformKind::kWush};
    const auto group =
        Run(recipe, {{.name = "q", .weight = &q}, {.name = "k", .weight = &k}}, &statistic);
    ASSERT_TRUE(group.ok()) << group.status();
    ASSERT_EQ(group->size(), 2u);
    const LayerResult whole = RunOne(recipe, stacked, &statistic);
    EXPECT_EQ((*group)[0].name, "q");
    EXPECT_EQ((*group)[1].report.layer, "k");
    for (const char* name : {"weight_packed", "weight_scale"}) {
      EXPECT_EQ(BytesOf(*Find((*group)[0], name)) + BytesOf(*Find((*group)[1], name)),
                BytesOf(*Find(whole, name)));
    }
    for (const char* name : {"input_transform", "weight_global_scale"}) {
      if (Find(whole, name) == nullptr) continue;
      for (const LayerResult& part : *group) {
        EXPECT_EQ(BytesOf(*Find(part, name)), BytesOf(*Find(whole, name)));
      }
    }
    // Errors are each layer's own.
    const RowMajor x = AsMatrix(activations_);
    const RowMajor m = x.transpose() * x / kTokens;
    for (const auto& [part, weight] : {std::pair(&(*group)[0], &q), std::pair(&(*group)[1], &k)}) {
      const RowMajor w = AsMatrix(*weight);
      const RowMajor d =
          w - AsMatrix(DequantizeResult(part->tensors, part->report.recipe_json).value());
      const double error = (d * m).cwiseProduct(d).sum() / (w * m).cwiseProduct(w).sum();
      EXPECT_NEAR(*part->report.relative_output_error_weight_only, error, 1e-4 * error);
    }
  }
}

TEST_F(PipelineTest, WithoutStatisticFiguresStayUnset) {
  const ErrorReport report =
      RunOne({.transform = TransformKind::kHadamard}, weight_, nullptr).report;
  EXPECT_FALSE(report.relative_output_error_weight_only.has_value());
  EXPECT_FALSE(report.relative_output_error_weight_and_activation.has_value());
  EXPECT_FALSE(report.baseline_identity_rtn.relative_output_error_weight_only.has_value());
  EXPECT_FALSE(report.tokens.has_value());
  EXPECT_FALSE(report.predicted_loss.has_value());
  EXPECT_TRUE(report.worst_rows.empty());
  EXPECT_GT(report.relative_weight_error, 0.0);
}

TEST_F(PipelineTest, WithoutSampleOnlyActivationFiguresStayUnset) {
  const SecondMoment statistic = Statistic(activations_, {.cols = kCols, .sample_rows = 0});
  const ErrorReport report =
      RunOne({.transform = TransformKind::kWush}, weight_, &statistic).report;
  EXPECT_TRUE(report.relative_output_error_weight_only.has_value());
  EXPECT_FALSE(report.relative_output_error_weight_and_activation.has_value());
  EXPECT_EQ(report.damping, 1e-2);
  EXPECT_EQ(report.sample_rows, 0);
}

TEST_F(PipelineTest, WorstRowsAndBlocksAreFound) {
  Tensor weight = RandomWeight(kRows, kCols, 5);
  for (int64_t c = 0; c < kCols; ++c) weight.as<float>()[17 * kCols + c] *= 100;
  const SecondMoment statistic = Statistic(activations_);
  const ErrorReport report = RunOne({}, weight, &statistic).report;
  ASSERT_EQ(report.worst_rows.size(), 8u);
  EXPECT_EQ(report.worst_rows[0].index, 17);
  EXPECT_GT(report.worst_rows[0].share, 0.9);
  EXPECT_EQ(report.worst_blocks.size(), static_cast<size_t>(kCols / 32));
  double shares = 0.0;
  for (const auto& worst : report.worst_blocks) shares += worst.share;
  EXPECT_NEAR(shares, 1.0, 1e-9);
}

TEST_F(PipelineTest, DegenerateLayersComeOutFinite) {
  Tensor x = RandomActivations(kTokens, kCols, 6);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t c = 32; c < 64; ++c) x.as<float>()[t * kCols + c] = 0.0f;  // a dead block
  }
  const SecondMoment statistic = Statistic(x);
  const Tensor zero = Tensor::Create(DType::kF32, {kRows, kCols}).value();
  const Tensor one_row = RandomWeight(1, kCols, 7);
  for (const Format format : kFormats) {
    for (const TransformKind kind : kTransforms) {
      for (const Tensor* weight : {&zero, &one_row}) {
        const LayerResult result =
            RunOne({.format = format, .transform = kind}, *weight, &statistic);
        EXPECT_EQ(result.report.dead_inputs, 32);
        const auto back = DequantizeResult(result.tensors, result.report.recipe_json);
        ASSERT_TRUE(back.ok()) << NameOf(format) << NameOf(kind) << back.status();
        if (weight == &zero) {
          EXPECT_FALSE(result.report.relative_output_error_weight_only.has_value());
          EXPECT_EQ(AsMatrix(*back).cwiseAbs().maxCoeff(), 0.0);
        }
      }
    }
  }
}

TEST_F(PipelineTest, RefusesBadWeights) {
  const auto refused = [&](const Tensor& weight, const std::string& why) {
    ExpectError(Run({}, {{.name = "enc", .weight = &weight}}, nullptr).status(),
                absl::StatusCode::kInvalidArgument, why);
  };
  Tensor nan = RandomWeight(4, kCols, 8);
  nan.as<float>()[2 * kCols + 5] = std::numeric_limits<float>::quiet_NaN();
  refused(nan, "layer 'enc': weight: expected finite values; got NaN or Inf in row 2, column 5");
  Tensor huge = Tensor::Create(DType::kF64, {4, kCols}).value();
  huge.as<double>()[kCols] = 1e300;
  refused(huge, "row 1, column 0");
  refused(RandomWeight(4, 48, 9), "group_size 32");
  refused(Tensor::Create(DType::kF32, {0, kCols}).value(), "rows; got 0");
  refused(Tensor::Create(DType::kF32, {4, 4, kCols}).value(), "expected a matrix");
  refused(Tensor::Create(DType::kI32, {4, kCols}).value(), "got I32");
  ExpectError(Run({}, {}, nullptr).status(), absl::StatusCode::kInvalidArgument, "layers");
  ExpectError(Run({}, {{.name = "enc", .weight = nullptr}}, nullptr).status(),
              absl::StatusCode::kInvalidArgument, "missing");
}

TEST_F(PipelineTest, RefusesStatisticsThatDoNotFit) {
  const std::vector<LayerInput> layer = {{.name = "enc", .weight = &weight_}};
  const Recipe wush = {.transform = TransformKind::kWush};
  ExpectError(Run(wush, layer, nullptr).status(), absl::StatusCode::kFailedPrecondition,
              "needs a second moment");
  const SecondMoment empty = SecondMoment::Create({.cols = kCols}).value();
  ExpectError(Run(wush, layer, &empty).status(), absl::StatusCode::kFailedPrecondition,
              "at least one token");
  const SecondMoment narrow = Statistic(RandomActivations(10, 64, 10), {.cols = 64});
  ExpectError(Run(wush, layer, &narrow).status(), absl::StatusCode::kInvalidArgument,
              "expected 128 columns; got 64");
  const SecondMoment blocks = Statistic(
      activations_, {.layout = MomentLayout::kBlockDiagonal, .block_size = 16, .cols = kCols});
  ExpectError(Run(wush, layer, &blocks).status(), absl::StatusCode::kInvalidArgument,
              "multiple of transform_block_size 32; got 16");
  ExpectError(
      Run({.transform = TransformKind::kWush, .solver = Solver::kConditional}, layer, &blocks)
          .status(),
      absl::StatusCode::kFailedPrecondition, "needs a full second moment");
  EXPECT_TRUE(Run({.transform = TransformKind::kHadamard}, layer, &blocks).ok());
  ExpectError(Run({.method = Method::kGptq}, layer, nullptr).status(),
              absl::StatusCode::kFailedPrecondition, "second moment");
}

TEST_F(PipelineTest, RefusesMomentsOfOtherKindsAndShapes) {
  const std::vector<LayerInput> layer = {{.name = "enc", .weight = &weight_}};
  const SecondMoment plain = Statistic(activations_);
  const auto of = [](const MomentSpec& spec) {
    const std::vector<double> ones(spec.SumElements(), 1.0);
    const double weight_sum = spec.kind == MomentKind::kWeighted ? 5.0 : 0.0;
    return SecondMoment::FromMatrix(spec, 5, true, ones, weight_sum).value();
  };
  const SecondMoment cross = of({.kind = MomentKind::kCross, .cols = kCols, .paired_cols = kCols});
  const SecondMoment residual =
      of({.kind = MomentKind::kResidual, .cols = kCols, .paired_cols = kRows});
  const auto refused = [&](const Calibration& calibration, absl::StatusCode code,
                           const std::string& message, const std::vector<LayerInput>& layers) {
    ExpectError(
        QuantizeLayers(*backend_, ResolveRecipe({}).value(), layers, calibration, nullptr, nullptr)
            .status(),
        code, message);
  };
  const auto bad = absl::StatusCode::kInvalidArgument;
  refused({.second_moment = &cross}, bad, "second_moment: expected a SECOND_MOMENT; got a CROSS",
          layer);
  refused({.second_moment = &plain, .second_moment_hat = &plain}, bad,
          "cross_moment: expected both", layer);
  refused({.second_moment = &plain, .cross_moment = &cross}, bad,
          "second_moment_hat: expected both", layer);
  refused({.second_moment = &plain, .second_moment_hat = &cross, .cross_moment = &cross}, bad,
          "second_moment_hat: expected a SECOND_MOMENT", layer);
  refused({.second_moment = &plain, .second_moment_hat = &plain, .cross_moment = &residual}, bad,
          "cross_moment: expected a CROSS_MOMENT", layer);
  refused({.second_moment = &plain, .residual_moment = &residual}, bad,
          "residual_moment: expected none in a fusion group",
          {{.name = "q", .weight = &weight_}, {.name = "k", .weight = &weight_}});
  const SecondMoment short_residual =
      of({.kind = MomentKind::kResidual, .cols = kCols, .paired_cols = kRows - 1});
  refused({.second_moment = &plain, .residual_moment = &short_residual}, bad, "rows, as the weight",
          layer);
  const SecondMoment blocks = Statistic(
      activations_, {.layout = MomentLayout::kBlockDiagonal, .block_size = 32, .cols = kCols});
  refused({.second_moment = &plain, .second_moment_hat = &blocks, .cross_moment = &cross}, bad,
          "second_moment_hat: expected a full", layer);
  SecondMoment weightless =
      SecondMoment::Create({.kind = MomentKind::kWeighted, .cols = kCols}).value();
  weightless.AddTokens(5);
  refused({.second_moment = &weightless}, absl::StatusCode::kFailedPrecondition,
          "5 tokens have weight 0", layer);
}

TEST_F(PipelineTest, WeightsOfOneChangeNothing) {
  const SecondMoment plain = Statistic(activations_);
  auto accumulator =
      backend_->NewAccumulator({.kind = MomentKind::kWeighted, .cols = kCols}, nullptr).value();
  const std::vector<float> ones(kTokens, 1.0f);
  ASSERT_TRUE(accumulator
                  ->Add("s", 0,
                        {.dtype = activations_.dtype(),
                         .tokens = kTokens,
                         .data = activations_.bytes(),
                         .weights = ones})
                  .ok());
  const SecondMoment weighted = accumulator->Snapshot().value();
  const Recipe wush = {.transform = TransformKind::kWush};
  const LayerResult a = RunOne(wush, weight_, &plain);
  const LayerResult b = RunOne(wush, weight_, &weighted);
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    EXPECT_EQ(BytesOf(a.tensors[i].tensor), BytesOf(b.tensors[i].tensor)) << a.tensors[i].name;
  }
}

TEST_F(PipelineTest, RefusesFusionGroupsThatDoNotFit) {
  const Tensor other = RandomWeight(8, 64, 11);
  ExpectError(Run({}, {{.name = "q", .weight = &weight_}, {.name = "k", .weight = &other}}, nullptr)
                  .status(),
              absl::StatusCode::kInvalidArgument, "layer 'k': weight: expected 128 columns");
  const Tensor few = RandomWeight(100, kCols, 12);
  ExpectError(Run({.format = Format::kFp8, .granularity = Granularity::kBlock128},
                  {{.name = "q", .weight = &few}, {.name = "k", .weight = &few}}, nullptr)
                  .status(),
              absl::StatusCode::kInvalidArgument, "multiple of 128 rows");
}

TEST_F(PipelineTest, ProgressRisesToTheEnd) {
  const SecondMoment statistic = Statistic(activations_);
  const LayerInput layer = {.name = "enc", .weight = &weight_};
  std::vector<double> fractions;
  std::vector<std::string> stages;
  const auto results = QuantizeLayers(
      *backend_, ResolveRecipe({.transform = TransformKind::kWush}).value(), {&layer, 1},
      {.second_moment = &statistic}, nullptr, [&](const PipelineProgress& progress) {
        fractions.push_back(progress.fraction);
        stages.emplace_back(progress.stage);
      });
  ASSERT_TRUE(results.ok());
  EXPECT_TRUE(std::is_sorted(fractions.begin(), fractions.end()));
  EXPECT_EQ(fractions.back(), 1.0);
  for (const char* stage : {"transform", "quantize", "pack", "report"}) {
    EXPECT_THAT(stages, testing::Contains(stage));
    EXPECT_GE(results->front().report.seconds.at(stage), 0.0);
  }
}

// Cancelled at every point where progress is told.
TEST_F(PipelineTest, CancelStopsAtAnyStage) {
  const SecondMoment statistic = Statistic(activations_);
  const LayerInput layer = {.name = "enc", .weight = &weight_};
  const Recipe recipe = ResolveRecipe({.transform = TransformKind::kWush}).value();
  const auto run = [&](int cancel_after) {
    CancelFlag cancel;
    int calls = 0;
    const absl::Status status =
        QuantizeLayers(*backend_, recipe, {&layer, 1}, {.second_moment = &statistic}, &cancel,
                       [&](const PipelineProgress& progress) {
                         if (calls++ == cancel_after && progress.fraction < 1.0) cancel.Cancel();
                       })
            .status();
    return std::pair(status.code(), calls);
  };
  const int all_calls = run(-1).second;
  for (int i = 0; i + 1 < all_calls; ++i) {
    EXPECT_EQ(run(i).first, absl::StatusCode::kCancelled) << i;
  }
}

TEST_F(PipelineTest, ConcurrentLayersGiveTheSameResults) {
  const SecondMoment statistic = Statistic(activations_);
  const Recipe recipe = {.format = Format::kNvfp4, .transform = TransformKind::kWush};
  const LayerResult alone = RunOne(recipe, weight_, &statistic);
  std::vector<std::thread> threads;
  std::atomic<int> equal{0};
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      const LayerResult result = RunOne(recipe, weight_, &statistic);
      equal += result.report.tensor_digests == alone.report.tensor_digests;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal, 3);
}

TEST_F(PipelineTest, EstimateBoundsPeakMemory) {
  const SecondMoment statistic = Statistic(activations_);
  for (const Format format : kFormats) {
    for (const TransformKind kind : kTransforms) {
      const Recipe recipe = ResolveRecipe({.format = format, .transform = kind}).value();
      const LayerResult result = RunOne(recipe, weight_, &statistic);
      const LayerEstimate estimate = EstimateLayer(recipe, kRows, kCols, true, 1e10);
      EXPECT_GE(estimate.peak_bytes, result.report.peak_bytes);
      EXPECT_GE(estimate.output_bytes, result.report.bytes);
      EXPECT_LE(estimate.output_bytes, result.report.bytes + 64);
      EXPECT_GT(estimate.device_seconds, 0.0);
    }
  }
}

TEST_F(PipelineTest, EstimateBoundsPeakMemoryOfGptq) {
  const SecondMoment statistic = Statistic(activations_);
  for (const Format format : kFormats) {
    for (const TransformKind kind : kTransforms) {
      const Recipe recipe =
          ResolveRecipe({.format = format, .transform = kind, .method = Method::kGptq}).value();
      const LayerResult result = RunOne(recipe, weight_, &statistic);
      EXPECT_GE(EstimateLayer(recipe, kRows, kCols, true, 1e10).peak_bytes,
                result.report.peak_bytes);
    }
  }
}

TEST_F(PipelineTest, GptqIsMeasuredLikeRoundToNearest) {
  const SecondMoment statistic = Statistic(activations_);
  for (const TransformKind kind : {TransformKind::kIdentity, TransformKind::kHadamard}) {
    const LayerResult result =
        RunOne({.transform = kind, .method = Method::kGptq}, weight_, &statistic);
    const ErrorReport& report = result.report;
    const ErrorReport::Baseline& baseline = kind == TransformKind::kIdentity
                                                ? report.baseline_identity_rtn
                                                : report.baseline_hadamard_rtn;
    EXPECT_GT(baseline.gain_weight_only.value(), 1.0);
    EXPECT_GT(baseline.gain_weight_and_activation.value(), 1.0);
    EXPECT_EQ(report.outcome, Outcome::kExact);
    EXPECT_EQ(report.damping, 0.01);
  }
}

// For weights that dwarf the sample the bound is of use, not only true.
TEST_F(PipelineTest, EstimateIsNotFarAbovePeakMemory) {
  const Tensor weight = RandomWeight(4096, kCols, 13);
  const SecondMoment statistic = Statistic(activations_, {.cols = kCols, .sample_rows = 64});
  const Recipe recipe = ResolveRecipe({.transform = TransformKind::kWush}).value();
  const int64_t peak = RunOne(recipe, weight, &statistic).report.peak_bytes;
  const LayerEstimate without_sample = EstimateLayer(recipe, 4096, kCols, false, 1e10);
  EXPECT_LE(without_sample.peak_bytes, 2 * peak);
}

TEST_F(PipelineTest, DequantizeRefusesWhatDoesNotFit) {
  const SecondMoment statistic = Statistic(activations_);
  const Recipe recipe = {.format = Format::kNvfp4, .transform = TransformKind::kWush};
  const std::string json = ToJson(ResolveRecipe(recipe).value());
  const auto refused = [&](const std::string& name, absl::StatusOr<Tensor> replacement,
                           const std::string& why) {
    LayerResult result = RunOne(recipe, weight_, &statistic);
    std::vector<NamedTensor> tensors;
    for (NamedTensor& named : result.tensors) {
      if (named.name != name) {
        tensors.push_back(std::move(named));
      } else if (replacement.ok()) {
        tensors.push_back({name, replacement->Clone()});
      }
    }
    ExpectError(DequantizeResult(tensors, json).status(), absl::StatusCode::kInvalidArgument, why);
  };
  const absl::Status gone = absl::NotFoundError("removed");
  for (const char* name : {"weight_packed", "weight_scale", "weight_global_scale", "weight_shape",
                           "input_transform"}) {
    refused(name, gone, std::string(name) + ": missing");
  }
  refused("weight_packed", Tensor::Create(DType::kU8, {kRows, kCols}).value(), "weight_packed");
  refused("weight_scale", Tensor::Create(DType::kU8, {kRows, kCols / 16}).value(), "got U8");
  refused("input_transform", Tensor::Create(DType::kF32, {4, 32, 32}).value(), "[4, 32, 32]");
  refused("weight_shape", Tensor::Create(DType::kI64, {2}).value(), "rows; got 0");
  ExpectError(DequantizeResult({}, "{}").status(), absl::StatusCode::kInvalidArgument, "recipe");
}

}  // namespace
}  // namespace quantd::compute
