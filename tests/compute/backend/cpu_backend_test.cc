// Every op of the CPU backend against naive loops.
#include "compute/backend/cpu/cpu_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace quantd::compute {
namespace {

using testing::HasSubstr;

using Matrix = std::vector<double>;

class CpuBackendTest : public testing::Test {
 protected:
  static constexpr int64_t kRows = 150;  // more than one tile of 128
  static constexpr int64_t kCols = 96;
  static constexpr int64_t kTokens = 140;
  static constexpr int64_t kBlock = 32;

  static Tensor Random(std::vector<int64_t> shape, int seed, DType dtype = DType::kF32) {
    Tensor tensor = Tensor::Create(dtype, std::move(shape)).value();
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < tensor.elements(); ++i) {
      const double value = normal(generator) * (i % 7 == 0 ? 4 : 1);
      if (dtype == DType::kF32) tensor.as<float>()[i] = static_cast<float>(value);
      if (dtype == DType::kF64) tensor.as<double>()[i] = value;
    }
    return tensor;
  }
  DeviceTensor Upload(const Tensor& tensor) { return backend_->Upload(*stream_, tensor).value(); }
  Matrix Values(const DeviceTensor& tensor) {
    const Tensor host = backend_->Download(*stream_, tensor).value();
    Matrix values(host.elements());
    ConvertToDouble(host.dtype(), host.bytes().data(), host.elements(), values.data());
    return values;
  }

  // A symmetric positive semidefinite C x C mean.
  DeviceTensor FullMoment() {
    const Tensor x = Random({200, kCols}, 77);
    Tensor m = Tensor::Create(DType::kF64, {kCols, kCols}).value();
    for (int64_t i = 0; i < kCols; ++i) {
      for (int64_t j = 0; j < kCols; ++j) {
        for (int64_t t = 0; t < 200; ++t) {
          m.as<double>()[i * kCols + j] += static_cast<double>(x.as<float>()[t * kCols + i]) *
                                           x.as<float>()[t * kCols + j] / 200;
        }
      }
    }
    return Upload(m);
  }
  DeviceTensor BlockMoment() {
    const Matrix full = Values(FullMoment());
    Tensor blocks = Tensor::Create(DType::kF64, {kCols / kBlock, kBlock, kBlock}).value();
    for (int64_t i = 0; i < kCols; ++i) {
      for (int64_t j = 0; j < kBlock; ++j) {
        blocks.as<double>()[i * kBlock + j] = full[i * kCols + i / kBlock * kBlock + j];
      }
    }
    return Upload(blocks);
  }
  TransformSolution Solve(TransformKind kind, const DeviceTensor& weight) {
    TransformProblem problem;
    problem.kind = kind;
    problem.block_size = kBlock;
    problem.weight = weight;
    if (kind == TransformKind::kWush) problem.second_moment = BlockMoment();
    return backend_->SolveTransforms(*stream_, problem).value();
  }
  // x T^T by blocks (or x T), naively.
  static Matrix Apply(const Matrix& x, const Matrix& t, bool transposed) {
    Matrix result(x.size());
    for (size_t at = 0; at < x.size(); ++at) {
      const auto r = static_cast<int64_t>(at) / kCols;
      const auto c = static_cast<int64_t>(at) % kCols;
      const int64_t first = c / kBlock * kBlock;
      for (int64_t k = 0; k < kBlock; ++k) {
        const int64_t i = transposed ? c % kBlock : k;
        const int64_t j = transposed ? k : c % kBlock;
        result[at] += x[r * kCols + first + k] * t[(first + i) * kBlock + j];
      }
    }
    return result;
  }

  static Recipe Mxfp4() { return ResolveRecipe({.format = Format::kMxfp4}).value(); }

  const std::unique_ptr<Backend> backend_ = NewCpuBackend(3);
  const std::unique_ptr<Stream> stream_ = backend_->NewStream(nullptr).value();
};

void ExpectClose(const Matrix& got, const Matrix& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << i;
}

TEST_F(CpuBackendTest, RegistryAlwaysHasTheCpu) {
  const DeviceInfo info = NewCpuBackend(2)->Describe();
  EXPECT_EQ(info.name, "cpu");
  EXPECT_THAT(info.description, HasSubstr("2 threads"));
  EXPECT_GT(info.memory_bytes, 0);
}

TEST_F(CpuBackendTest, HasNoMemoryThatProcessesHandOver) {
  EXPECT_EQ(backend_->OpenRegion(std::string(64, 'x'), 1 << 20).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(backend_->Describe().uuid, "");
}

TEST_F(CpuBackendTest, UploadWidensAndSlicesKeepRows) {
  const Tensor host = Random({5, 3}, 1);
  const DeviceTensor device = Upload(host);
  EXPECT_EQ(device.dtype(), DType::kF64);
  const Matrix all = Values(device);
  for (int64_t i = 0; i < 15; ++i) EXPECT_EQ(all[i], host.as<float>()[i]);
  const Matrix rows = Values(backend_->SliceRows(*stream_, device, 2, 2).value());
  EXPECT_EQ(rows, Matrix(all.begin() + 6, all.begin() + 12));
  EXPECT_FALSE(backend_->SliceRows(*stream_, device, 4, 2).ok());
}

TEST_F(CpuBackendTest, TransformsAreInverseTransposes) {
  const DeviceTensor weight = Upload(Random({kRows, kCols}, 2));
  for (const TransformKind kind :
       {TransformKind::kHadamard, TransformKind::kRandom, TransformKind::kWush}) {
    const TransformSolution solution = Solve(kind, weight);
    const Matrix tx = Values(solution.transform.tx);
    const Matrix tw = Values(solution.transform.tw);
    for (int64_t block = 0; block < kCols / kBlock; ++block) {
      for (int64_t i = 0; i < kBlock; ++i) {
        for (int64_t j = 0; j < kBlock; ++j) {
          double sum = 0.0;
          for (int64_t k = 0; k < kBlock; ++k) {
            sum += tw[(block * kBlock + k) * kBlock + i] * tx[(block * kBlock + k) * kBlock + j];
          }
          EXPECT_NEAR(sum, i == j ? 1.0 : 0.0, 1e-9) << NameOf(kind);
        }
      }
    }
  }
}

TEST_F(CpuBackendTest, DiagonalBlocksOfAMatrixAndOfLargerBlocks) {
  const DeviceTensor full = FullMoment();
  const DeviceTensor blocks = backend_->DiagonalBlocks(*stream_, full, kBlock).value();
  EXPECT_EQ(Values(blocks), Values(BlockMoment()));
  const DeviceTensor smaller = backend_->DiagonalBlocks(*stream_, full, kBlock / 2).value();
  EXPECT_EQ(Values(backend_->DiagonalBlocks(*stream_, blocks, kBlock / 2).value()),
            Values(smaller));
  EXPECT_THAT(std::string(backend_->DiagonalBlocks(*stream_, blocks, 7).status().message()),
              HasSubstr("of a multiple of 7 columns; got [3, 32, 32]"));
}

TEST_F(CpuBackendTest, RoundToNearestDecodesToItsCodes) {
  const DeviceTensor weight = Upload(Random({kRows, kCols}, 3));
  for (const Format kind :
       {Format::kMxfp4, Format::kNvfp4, Format::kInt4, Format::kInt8, Format::kFp8}) {
    for (const Granularity granularity :
         {Granularity::kGroup, Granularity::kRow, Granularity::kBlock128}) {
      const auto recipe = ResolveRecipe({.format = kind, .granularity = granularity});
      if (!recipe.ok()) continue;
      const auto format = NumberFormat::Create(*recipe, kCols);
      const TransformSolution solution = Solve(TransformKind::kHadamard, weight);
      const QuantizedWeight quantized =
          backend_->RoundToNearest(*stream_, *format, solution.transform, weight).value();
      Matrix decoded(kRows * kCols);
      ASSERT_TRUE(DecodeMatrix(*format, DownloadEncoded(*backend_, *stream_, quantized).value(),
                               absl::MakeSpan(decoded))
                      .ok());
      EXPECT_EQ(Values(quantized.decoded), decoded) << NameOf(kind);
      ExpectClose(Values(quantized.dequantized),
                  Apply(decoded, Values(solution.transform.tx), false), 1e-12);
      // Near the transformed weight: each format's worst relative step is far below this.
      const Matrix target = Apply(Values(weight), Values(solution.transform.tw), true);
      double error = 0.0;
      double norm = 0.0;
      for (size_t i = 0; i < target.size(); ++i) {
        error += std::pow(target[i] - decoded[i], 2);
        norm += target[i] * target[i];
      }
      EXPECT_LE(error / norm, 0.03) << NameOf(kind);
    }
  }
}

TEST_F(CpuBackendTest, IdentityLeavesDequantizedAsDecoded) {
  const DeviceTensor weight = Upload(Random({4, kCols}, 4));
  const auto format = NumberFormat::Create(Mxfp4(), kCols);
  const BlockTransform identity = Solve(TransformKind::kIdentity, weight).transform;
  ASSERT_TRUE(identity.identity);
  const QuantizedWeight quantized =
      backend_->RoundToNearest(*stream_, *format, identity, weight).value();
  EXPECT_EQ(Values(quantized.decoded), Values(quantized.dequantized));
}

TEST_F(CpuBackendTest, WeightErrorEqualsNaiveSums) {
  const DeviceTensor weight = Upload(Random({kRows, kCols}, 5));
  const DeviceTensor other = Upload(Random({kRows, kCols}, 6));
  const Matrix w = Values(weight);
  const Matrix q = Values(other);
  const Matrix full = Values(FullMoment());
  for (const bool is_full : {true, false}) {
    for (const bool has_other : {true, false}) {
      const WeightError error =
          backend_
              ->MeasureWeightError(*stream_, weight, has_other ? other : DeviceTensor(),
                                   is_full ? FullMoment() : BlockMoment(),
                                   ErrorDetail::kRowsAndColumns)
              .value();
      std::vector<double> by_column(kCols);
      double sum_squares = 0.0;
      double max_abs = 0.0;
      for (int64_t r = 0; r < kRows; ++r) {
        Matrix d(kCols);
        for (int64_t c = 0; c < kCols; ++c) {
          d[c] = w[r * kCols + c] - (has_other ? q[r * kCols + c] : 0.0);
          sum_squares += d[c] * d[c];
          max_abs = std::max(max_abs, std::abs(d[c]));
        }
        double row = 0.0;
        for (int64_t i = 0; i < kCols; ++i) {
          double product = 0.0;
          for (int64_t j = 0; j < kCols; ++j) {
            if (is_full || i / kBlock == j / kBlock) product += d[j] * full[j * kCols + i];
          }
          row += product * d[i];
          by_column[i] += product * d[i];
        }
        EXPECT_NEAR(error.by_row[r], row, 1e-9 * std::abs(row));
      }
      for (int64_t c = 0; c < kCols; ++c) EXPECT_NEAR(error.by_column[c], by_column[c], 1e-6);
      EXPECT_NEAR(error.sum_squares, sum_squares, 1e-9 * sum_squares);
      EXPECT_EQ(error.max_abs, max_abs);
    }
  }
}

// More columns than a diagonal block of the product has, in blocks that do not divide them.
TEST_F(CpuBackendTest, WeightErrorByRowsAloneIsTheSame) {
  constexpr int64_t kWide = 600;
  const DeviceTensor weight = Upload(Random({kRows, kWide}, 8));
  Tensor symmetric = Random({kWide, kWide}, 9);
  const auto entries = symmetric.as<float>();
  for (int64_t i = 0; i < kWide; ++i) {
    for (int64_t j = 0; j < i; ++j) entries[j * kWide + i] = entries[i * kWide + j];
  }
  const DeviceTensor moment = Upload(symmetric);
  const auto measure = [&](ErrorDetail detail) {
    return backend_->MeasureWeightError(*stream_, weight, DeviceTensor(), moment, detail).value();
  };
  const WeightError both = measure(ErrorDetail::kRowsAndColumns);
  const WeightError rows = measure(ErrorDetail::kRows);
  EXPECT_TRUE(rows.by_column.empty());
  EXPECT_EQ(rows.sum_squares, both.sum_squares);
  ASSERT_EQ(rows.by_row.size(), both.by_row.size());
  for (int64_t r = 0; r < kRows; ++r) {
    EXPECT_NEAR(rows.by_row[r], both.by_row[r], 1e-9 * kWide) << r;
  }
}

TEST_F(CpuBackendTest, WeightErrorWithoutMomentHasNoOutputPart) {
  const DeviceTensor weight = Upload(Random({3, kCols}, 7));
  const WeightError error = backend_
                                ->MeasureWeightError(*stream_, weight, DeviceTensor(),
                                                     DeviceTensor(), ErrorDetail::kRowsAndColumns)
                                .value();
  EXPECT_TRUE(error.by_row.empty());
  EXPECT_TRUE(error.by_column.empty());
  EXPECT_GT(error.sum_squares, 0.0);
}

TEST_F(CpuBackendTest, OutputErrorEqualsNaiveProducts) {
  const DeviceTensor weight = Upload(Random({kRows, kCols}, 8));
  const DeviceTensor sample = Upload(Random({kTokens, kCols}, 9));
  for (const Format kind : {Format::kMxfp4, Format::kNvfp4, Format::kInt8}) {
    const Recipe recipe = ResolveRecipe({.format = kind, .transform_block_size = kBlock}).value();
    const auto format = NumberFormat::Create(recipe, kCols);
    const BlockTransform transform = Solve(TransformKind::kWush, weight).transform;
    const QuantizedWeight quantized =
        backend_->RoundToNearest(*stream_, *format, transform, weight).value();
    const DeviceTensor outputs = backend_->ComputeOutputs(*stream_, weight, sample).value();
    const OutputError got =
        backend_
            ->MeasureOutputError(*stream_, *format, transform, quantized.decoded, sample, outputs)
            .value();

    Matrix x = Apply(Values(sample), Values(transform.tx), true);
    FakeQuantize(*format, kTokens, kCols, x.data());
    const Matrix w = Values(weight);
    const Matrix decoded = Values(quantized.decoded);
    const Matrix raw = Values(sample);
    double error = 0.0;
    double energy = 0.0;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t r = 0; r < kRows; ++r) {
        double y = 0.0;
        double yhat = 0.0;
        for (int64_t c = 0; c < kCols; ++c) {
          y += raw[t * kCols + c] * w[r * kCols + c];
          yhat += x[t * kCols + c] * decoded[r * kCols + c];
        }
        error += (y - yhat) * (y - yhat);
        energy += y * y;
      }
    }
    // A value at a rounding boundary may fall to either side.
    EXPECT_NEAR(got.error, error, 1e-4 * error) << NameOf(kind);
    EXPECT_NEAR(got.energy, energy, 1e-10 * energy);
  }
}

TEST_F(CpuBackendTest, SpreadIsThatOfTheTransformedMoments) {
  const DeviceTensor weight = Upload(Random({kRows, kCols}, 10));
  const Matrix m = Values(BlockMoment());
  for (const TransformKind kind : {TransformKind::kIdentity, TransformKind::kWush}) {
    const TransformSolution solution = Solve(kind, weight);
    const double got =
        backend_->MeasureSpread(*stream_, solution.transform, weight, BlockMoment()).value();
    Matrix tx(kCols * kBlock);
    Matrix tw = tx;
    for (int64_t i = 0; i < kCols; ++i)
      tx[i * kBlock + i % kBlock] = tw[i * kBlock + i % kBlock] = 1;
    if (kind != TransformKind::kIdentity) {
      tx = Values(solution.transform.tx);
      tw = Values(solution.transform.tw);
    }
    const Matrix transformed = Apply(Values(weight), tw, true);
    double want = 0.0;
    for (int64_t c = 0; c < kCols; ++c) {
      double a = 0.0;
      for (int64_t r = 0; r < kRows; ++r) a += std::pow(transformed[r * kCols + c], 2) / kRows;
      double b = 0.0;
      const int64_t first = c / kBlock * kBlock;
      for (int64_t i = 0; i < kBlock; ++i) {
        for (int64_t j = 0; j < kBlock; ++j) {
          b += tx[c * kBlock + i] * m[(first + i) * kBlock + j] * tx[c * kBlock + j];
        }
      }
      want += a * b;
    }
    EXPECT_NEAR(got, want, 1e-9 * want);
  }
}

// WUSH, section 3: the spread of the solution is (tr S)^2 / B summed over the blocks (up to
// damping), which no orthogonal transform can beat.
TEST_F(CpuBackendTest, WushReachesItsPredictedSpread) {
  const DeviceTensor weight = Upload(Random({kRows, kCols}, 11));
  TransformProblem problem;
  problem.kind = TransformKind::kWush;
  problem.block_size = kBlock;
  problem.damping = 1e-8;
  problem.weight = weight;
  problem.second_moment = BlockMoment();
  const TransformSolution wush = backend_->SolveTransforms(*stream_, problem).value();
  double want = 0.0;
  for (const double trace : wush.trace) want += trace * trace / kBlock;
  const double got =
      backend_->MeasureSpread(*stream_, wush.transform, weight, BlockMoment()).value();
  EXPECT_NEAR(got, want, 1e-4 * want);
  for (const TransformKind kind : {TransformKind::kIdentity, TransformKind::kHadamard}) {
    const BlockTransform other = Solve(kind, weight).transform;
    EXPECT_LT(got, backend_->MeasureSpread(*stream_, other, weight, BlockMoment()).value());
  }
}

TEST_F(CpuBackendTest, ThreadsLeaveNoTrace) {
  const auto one = NewCpuBackend(1);
  const Tensor host = Random({kRows, kCols}, 12);
  const auto format = NumberFormat::Create(Mxfp4(), kCols);
  const auto run = [&](Backend& backend) {
    const DeviceTensor weight = backend.Upload(*stream_, host).value();
    TransformProblem problem;
    problem.kind = TransformKind::kWush;
    problem.block_size = kBlock;
    problem.weight = weight;
    problem.second_moment = BlockMoment();
    const BlockTransform transform = backend.SolveTransforms(*stream_, problem)->transform;
    auto quantized = backend.RoundToNearest(*stream_, *format, transform, weight);
    const WeightError error = *backend.MeasureWeightError(*stream_, weight, quantized->dequantized,
                                                          FullMoment(), ErrorDetail::kRows);
    return std::make_pair(Values(quantized->dequantized), error.by_column);
  };
  EXPECT_EQ(run(*one), run(*backend_));
}

TEST_F(CpuBackendTest, WrongShapesAreErrors) {
  const DeviceTensor weight = Upload(Random({4, kCols}, 13));
  const DeviceTensor narrow = Upload(Random({4, kBlock}, 14));
  const auto format = NumberFormat::Create(Mxfp4(), kCols);
  BlockTransform transform = Solve(TransformKind::kHadamard, weight).transform;
  EXPECT_THAT(backend_->RoundToNearest(*stream_, *format, transform, narrow).status().message(),
              HasSubstr("transform: expected blocks of 32"));
  EXPECT_THAT(backend_->RoundToNearest(*stream_, *format, transform, {}).status().message(),
              HasSubstr("weight: expected a matrix; got nothing"));
  EXPECT_FALSE(backend_->MeasureWeightError(*stream_, weight, narrow, {}, ErrorDetail::kRows).ok());
  EXPECT_FALSE(
      backend_->MeasureWeightError(*stream_, weight, weight, narrow, ErrorDetail::kRows).ok());
  EXPECT_FALSE(backend_->ComputeOutputs(*stream_, weight, narrow).ok());
  TransformProblem problem;
  problem.kind = TransformKind::kWush;
  problem.solver = Solver::kConditional;
  problem.block_size = kBlock;
  problem.weight = weight;
  problem.second_moment = BlockMoment();
  EXPECT_THAT(backend_->SolveTransforms(*stream_, problem).status().message(),
              HasSubstr("second_moment: expected [96, 96]; got [3, 32, 32]"));
  EXPECT_FALSE(backend_->Upload(*stream_, Tensor::Create(DType::kI32, {2, 2}).value()).ok());
}

TEST_F(CpuBackendTest, CancelledStreamsStop) {
  CancelFlag cancel;
  const auto stream = backend_->NewStream(&cancel).value();
  const DeviceTensor weight = Upload(Random({kRows, kCols}, 15));
  const auto format = NumberFormat::Create(Mxfp4(), kCols);
  const BlockTransform transform = Solve(TransformKind::kHadamard, weight).transform;
  const auto rtn = [&] {
    return backend_->RoundToNearest(*stream, *format, transform, weight).status().code();
  };
  EXPECT_EQ(rtn(), absl::StatusCode::kOk);
  cancel.Cancel();
  EXPECT_EQ(rtn(), absl::StatusCode::kCancelled);
  EXPECT_EQ(backend_->MeasureWeightError(*stream, weight, weight, FullMoment(), ErrorDetail::kRows)
                .status()
                .code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(stream->Synchronize().code(), absl::StatusCode::kCancelled);
}

TEST_F(CpuBackendTest, StreamMetersItsTensors) {
  const auto stream = backend_->NewStream(nullptr).value();
  EXPECT_EQ(stream->peak_bytes(), 0);
  {
    const DeviceTensor a = backend_->Upload(*stream, Random({10, 10}, 16)).value();
    const DeviceTensor b = backend_->Upload(*stream, Random({10, 10}, 17)).value();
    EXPECT_EQ(stream->peak_bytes(), 1600);
  }
  const DeviceTensor c = backend_->Upload(*stream, Random({10, 10}, 18)).value();
  EXPECT_EQ(stream->peak_bytes(), 1600);
}

}  // namespace
}  // namespace quantd::compute
