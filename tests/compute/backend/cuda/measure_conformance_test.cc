// Every figure of the error report: CUDA against the CPU.
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/compute/backend/cuda/transform_test.h"

namespace quantd::compute {
namespace {

class CudaMeasureTest : public CudaTransformTest {
 protected:
  // Relative to the larger of the two.
  static void ExpectNear(double a, double b, double bound, const std::string& what) {
    EXPECT_LE(std::abs(a - b), bound * std::max(std::abs(a), std::abs(b))) << what;
  }

  void CompareWeightErrors(const Tensor& weight, const Tensor* dequantized, const Tensor* moment,
                           double bound, const std::string& what) {
    const auto measure = [&](Side& side, ErrorDetail detail) {
      return side.backend
          ->MeasureWeightError(*side.stream, side.Upload(weight),
                               dequantized == nullptr ? DeviceTensor() : side.Upload(*dequantized),
                               moment == nullptr ? DeviceTensor() : side.Upload(*moment), detail)
          .value();
    };
    const WeightError cuda = measure(cuda_, ErrorDetail::kRowsAndColumns);
    const WeightError cpu = measure(cpu_, ErrorDetail::kRowsAndColumns);
    EXPECT_EQ(cuda.max_abs, cpu.max_abs) << what;
    ExpectNear(cuda.sum_squares, cpu.sum_squares, 1e-13, what);
    EXPECT_LT(RelativeDistance(cuda.by_row, cpu.by_row), bound) << what;
    EXPECT_LT(RelativeDistance(cuda.by_column, cpu.by_column), bound) << what;
    const WeightError rows = measure(cuda_, ErrorDetail::kRows);
    EXPECT_LT(RelativeDistance(rows.by_row, cpu.by_row), bound) << what;
    EXPECT_TRUE(rows.by_column.empty() && rows.sum_squares == cuda.sum_squares) << what;
    const WeightError again = measure(cuda_, ErrorDetail::kRowsAndColumns);
    EXPECT_TRUE(again.by_row == cuda.by_row && again.by_column == cuda.by_column &&
                again.sum_squares == cuda.sum_squares)
        << what;
  }

  // Large full moments are multiplied in half precision where that holds the bound: of the total,
  // and five times as much of its parts.
  void CompareSplit(const Tensor& d, const Tensor& moment, const std::string& what) {
    constexpr double kBound = 1e-4;
    const auto measure = [&](Side& side, ErrorDetail detail) {
      return side.backend
          ->MeasureWeightError(*side.stream, side.Upload(d), DeviceTensor(), side.Upload(moment),
                               detail)
          .value();
    };
    const WeightError cuda = measure(cuda_, ErrorDetail::kRowsAndColumns);
    const WeightError rows = measure(cuda_, ErrorDetail::kRows);
    const WeightError cpu = measure(cpu_, ErrorDetail::kRowsAndColumns);
    const auto sum = [](const std::vector<double>& parts) {
      return std::accumulate(parts.begin(), parts.end(), 0.0);
    };
    ExpectNear(sum(cuda.by_row), sum(cpu.by_row), kBound, what);
    ExpectNear(sum(rows.by_row), sum(cpu.by_row), kBound, what);
    ExpectNear(sum(cuda.by_column), sum(cpu.by_column), kBound, what);
    EXPECT_LT(RelativeDistance(cuda.by_row, cpu.by_row), 5 * kBound) << what;
    EXPECT_LT(RelativeDistance(rows.by_row, cpu.by_row), 5 * kBound) << what;
    EXPECT_LT(RelativeDistance(cuda.by_column, cpu.by_column), 5 * kBound) << what;
    EXPECT_EQ(cuda.max_abs, cpu.max_abs) << what;
    ExpectNear(cuda.sum_squares, cpu.sum_squares, 1e-13, what);
    EXPECT_EQ(measure(cuda_, ErrorDetail::kRowsAndColumns).by_column, cuda.by_column) << what;
    EXPECT_EQ(measure(cuda_, ErrorDetail::kRows).by_row, rows.by_row) << what;
  }

  Tensor Rounded(const Tensor& weight, Format format) {
    const auto rounding =
        NumberFormat::Create(ResolveRecipe({.format = format}).value(), weight.dim(1));
    BlockTransform identity;
    identity.identity = true;
    const QuantizedWeight q =
        cpu_.backend->RoundToNearest(*cpu_.stream, *rounding, identity, cpu_.Upload(weight))
            .value();
    return cpu_.backend->Download(*cpu_.stream, q.decoded).value();
  }
};

TEST_F(CudaMeasureTest, WeightErrorsOfAnyMoment) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{37, 96}, {300, 512}, {1, 32}}) {
    const Tensor w = Random({rows, cols}, 21);
    const Tensor q = Rounded(w, Format::kMxfp4);
    const Tensor full = RandomMoment(cols, 22);
    const Tensor blocks = DiagonalBlocks(full, 32);
    const std::string what = absl::StrCat(rows, "x", cols);
    CompareWeightErrors(w, &q, nullptr, 1e-12, what);
    CompareWeightErrors(w, nullptr, nullptr, 1e-12, what);
    CompareWeightErrors(w, &q, &full, 1e-12, what);
    CompareWeightErrors(w, nullptr, &full, 1e-12, what);
    CompareWeightErrors(w, &q, &blocks, 1e-12, what);
    CompareWeightErrors(w, nullptr, &blocks, 1e-12, what);
  }
}

// s_i s_j (rho^|i-j| + common), some s ten times as large as others.
Tensor LargeMoment(int64_t cols, double rho, double common) {
  Tensor m = Tensor::Create(DType::kF64, {cols, cols}).value();
  const auto s = [](int64_t i) { return (i % 17 == 0 ? 10.0 : 1.0) * (1.0 + 0.01 * (i % 31)); };
  for (int64_t i = 0; i < cols; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const double k = (1.0 - common) * std::pow(rho, std::abs(i - j)) + common;
      m.as<double>()[i * cols + j] = s(i) * s(j) * k;
    }
  }
  return m;
}

// What GPTQ's errors are like: random numbers whitened by the Cholesky factor of the moment.
Tensor Whitened(Tensor d, const Tensor& lower) {
  const int64_t cols = d.dim(1);
  const double* l = lower.as<double>().data();
  for (int64_t r = 0; r < d.dim(0); ++r) {
    double* row = d.as<double>().data() + r * cols;
    for (int64_t i = cols - 1; i >= 0; --i) {
      row[i] /= l[i * cols + i];
      for (int64_t j = 0; j < i; ++j) row[j] -= row[i] * l[i * cols + j];
    }
  }
  return d;
}

TEST_F(CudaMeasureTest, LargeMomentsWithinTheirBound) {
  constexpr int64_t kRows = 5200;  // more than a slice, and no whole chunk
  constexpr int64_t kCols = 1024;
  const struct {
    double rho;
    double common;
  } moments[] = {{0.0, 0.0}, {0.5, 0.3}, {0.9, 0.0}, {0.8, 0.5}, {0.99, 0.0}, {0.999, 0.1}};
  for (const auto& [rho, common] : moments) {
    const Tensor m = LargeMoment(kCols, rho, common);
    const MomentFactor factor =
        cpu_.backend->FactorMoment(*cpu_.stream, cpu_.Upload(m), 0.0).value();
    const Tensor lower = cpu_.backend->Download(*cpu_.stream, factor.lower).value();
    const std::string what = absl::StrCat(rho, " ", common);
    CompareSplit(Random({kRows, kCols}, 31), m, absl::StrCat("independent ", what));
    CompareSplit(Whitened(Random({kRows, kCols}, 32), lower), m, absl::StrCat("whitened ", what));
  }
}

// A matrix that is no second moment, and numbers beyond float32: measured in float64.
TEST_F(CudaMeasureTest, LargeMomentsThatDoNotSplit) {
  const Tensor d = Random({5200, 1024}, 32);
  Tensor hollow = LargeMoment(1024, 0.5, 0.0);
  hollow.as<double>()[7 * 1025] = 0.0;
  CompareWeightErrors(d, nullptr, &hollow, 1e-12, "hollow");
  Tensor tiny = Random({5200, 1024}, 32);
  for (double& value : tiny.as<double>()) value *= 1e-40;
  const Tensor m = LargeMoment(1024, 0.5, 0.0);
  CompareWeightErrors(tiny, nullptr, &m, 1e-12, "tiny");
}

TEST_F(CudaMeasureTest, OutputsAndTheirErrors) {
  for (const Recipe& given :
       {Recipe{.format = Format::kMxfp4}, Recipe{.format = Format::kNvfp4},
        Recipe{.format = Format::kInt3}, Recipe{.format = Format::kInt8},
        Recipe{.format = Format::kInt4, .granularity = Granularity::kRow},
        Recipe{.format = Format::kFp8, .granularity = Granularity::kRow},
        Recipe{.format = Format::kFp8, .granularity = Granularity::kBlock128}}) {
    const Recipe recipe = ResolveRecipe(given).value();
    const Tensor w = Random({75, 192}, 23);
    const Tensor x = Random({33, 192}, 24);
    const auto format = NumberFormat::Create(recipe, 192);
    for (const TransformKind kind : {TransformKind::kIdentity, TransformKind::kWush}) {
      const BlockTransform transform = Solve(kind, 32, w);
      const BlockTransform on_cuda = ToCuda(transform);
      const auto measure = [&](Side& side, const BlockTransform& t) {
        const DeviceTensor sample = side.Upload(x);
        const DeviceTensor weight = side.Upload(w);
        const DeviceTensor outputs =
            side.backend->ComputeOutputs(*side.stream, weight, sample).value();
        const QuantizedWeight q =
            side.backend->RoundToNearest(*side.stream, *format, t, weight).value();
        const OutputError error =
            side.backend->MeasureOutputError(*side.stream, *format, t, q.decoded, sample, outputs)
                .value();
        return std::pair(side.Values(outputs), error);
      };
      const auto [cuda_outputs, cuda] = measure(cuda_, on_cuda);
      const auto [cpu_outputs, cpu] = measure(cpu_, transform);
      const std::string what = ToJson(recipe);
      EXPECT_LT(RelativeDistance(cuda_outputs, cpu_outputs), 1e-13) << what;
      ExpectNear(cuda.energy, cpu.energy, 1e-12, what);
      // A tie of one activation that rounds the other way shows; none does here.
      ExpectNear(cuda.error, cpu.error, 1e-10, what);
    }
  }
}

// Large outputs are multiplied as halves; their errors are good for 1e-4 down to int8's.
TEST_F(CudaMeasureTest, LargeOutputsWithinTheirBound) {
  const Tensor w = Random({4096, 4096}, 35);
  const Tensor x = Random({520, 4096}, 36);
  BlockTransform identity;
  identity.identity = true;
  for (const Format kind : {Format::kMxfp4, Format::kInt8}) {
    const auto format = NumberFormat::Create(ResolveRecipe({.format = kind}).value(), w.dim(1));
    const auto measure = [&](Side& side) {
      const DeviceTensor sample = side.Upload(x);
      const DeviceTensor weight = side.Upload(w);
      const DeviceTensor outputs =
          side.backend->ComputeOutputs(*side.stream, weight, sample).value();
      const QuantizedWeight q =
          side.backend->RoundToNearest(*side.stream, *format, identity, weight).value();
      const OutputError error =
          side.backend
              ->MeasureOutputError(*side.stream, *format, identity, q.decoded, sample, outputs)
              .value();
      return std::pair(side.Values(outputs), error);
    };
    const auto [cuda_outputs, cuda] = measure(cuda_);
    const auto [cpu_outputs, cpu] = measure(cpu_);
    EXPECT_LT(RelativeDistance(cuda_outputs, cpu_outputs), 1e-5) << NameOf(kind);
    ExpectNear(cuda.energy, cpu.energy, 2e-5, std::string(NameOf(kind)));
    ExpectNear(cuda.error / cuda.energy, cpu.error / cpu.energy, 1e-4, std::string(NameOf(kind)));
  }
}

TEST_F(CudaMeasureTest, Spread) {
  const Tensor w = Random({130, 192}, 25);
  for (const int64_t size : {16, 32, 48, 64, 96}) {
    const Tensor m = DiagonalBlocks(RandomMoment(192, 26), size);
    for (const TransformKind kind :
         {TransformKind::kIdentity, TransformKind::kRandom, TransformKind::kWus}) {
      const BlockTransform transform = Solve(kind, size, w);
      ExpectNear(
          cuda_.backend
              ->MeasureSpread(*cuda_.stream, ToCuda(transform), cuda_.Upload(w), cuda_.Upload(m))
              .value(),
          cpu_.backend->MeasureSpread(*cpu_.stream, transform, cpu_.Upload(w), cpu_.Upload(m))
              .value(),
          1e-12, absl::StrCat(size));
    }
  }
}

TEST_F(CudaMeasureTest, DriftError) {
  const Tensor w = Random({75, 160}, 27);
  const Tensor q = Rounded(w, Format::kMxfp4);
  const Tensor m = RandomMoment(160, 28);
  const Tensor hat = RandomMoment(160, 29);
  const Tensor cross = Random({160, 160}, 30);
  const auto measure = [&](Side& side) {
    return side.backend
        ->MeasureDriftError(*side.stream, side.Upload(w), side.Upload(q), side.Upload(m),
                            side.Upload(hat), side.Upload(cross))
        .value();
  };
  const OutputError cuda = measure(cuda_);
  const OutputError cpu = measure(cpu_);
  ExpectNear(cuda.energy, cpu.energy, 1e-12, "energy");
  ExpectNear(cuda.error, cpu.error, 1e-11, "error");
}

}  // namespace
}  // namespace quantd::compute
