#include "compute/backend/cpu/moment_accumulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {
namespace {

using testing::HasSubstr;

constexpr int64_t kCols = 200;  // no multiple of any panel
constexpr int64_t kTokens = 2 * kSliceTokens + 300;

MomentSpec FullSpec() { return {.cols = kCols, .sample_rows = 16, .sample_seed = 3}; }
MomentSpec BlockSpec() {
  return {.layout = MomentLayout::kBlockDiagonal,
          .block_size = 40,
          .cols = kCols,
          .sample_rows = 16,
          .sample_seed = 3};
}

enum class Data {
  kGaussian,
  kOffset,
  kHeavyTailed,
  kConstant,
  kSigns,
  kGrid,
  kMassive,
  kTiny,
  kHuge
};
constexpr Data kAllData[] = {Data::kGaussian, Data::kOffset, Data::kHeavyTailed,
                             Data::kConstant, Data::kSigns,  Data::kGrid,
                             Data::kMassive,  Data::kTiny,   Data::kHuge};

float Draw(Data data, int64_t column, float z) {
  switch (data) {
    case Data::kGaussian:
      return z;
    case Data::kOffset:
      return 10.0f + z;
    case Data::kHeavyTailed:
      return z * z * z * z * z;
    case Data::kConstant:
      return 0.1037f;
    case Data::kSigns:
      return z > 0 ? 0.1037f : -0.1037f;
    case Data::kGrid:
      return std::round(std::min(7.0f, std::max(-7.0f, 2 * z))) * 0.1037f;
    case Data::kMassive:
      return column == 5 ? 103.7f : z;
    case Data::kTiny:
      return 1e-30f * z;
    case Data::kHuge:
      return 1e30f * z;
  }
  return 0.0f;
}

Tensor Activations(Data data, DType dtype, int64_t tokens = kTokens) {
  Tensor x = Tensor::Create(dtype, {tokens, kCols}).value();
  std::mt19937 generator(static_cast<int>(data));
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < x.elements(); ++i) {
    const float value = Draw(data, i % kCols, normal(generator));
    switch (dtype) {
      case DType::kF64:
        x.as<double>()[i] = static_cast<double>(value) * (1.0 + 1e-10);
        break;
      case DType::kF32:
        x.as<float>()[i] = value;
        break;
      default:
        x.as<uint16_t>()[i] = FloatToBf16(value);
    }
  }
  return x;
}

// Feeds rows [first, last) in chunks of the given sizes, over and over.
void Feed(MomentAccumulator& accumulator, const Tensor& x, int64_t first, int64_t last,
          const std::vector<int64_t>& sizes) {
  const auto row_bytes = kCols * static_cast<int64_t>(SizeOf(x.dtype()));
  for (size_t i = 0; first < last; ++i) {
    const int64_t rows = std::min(sizes[i % sizes.size()], last - first);
    const absl::Status status = accumulator.Add(
        "stream", first, x.dtype(), rows, x.bytes().subspan(first * row_bytes, rows * row_bytes));
    ASSERT_TRUE(status.ok()) << status;
    first += rows;
  }
}

SecondMoment Accumulate(WorkerPool& pool, const MomentSpec& spec, const Tensor& x,
                        const std::vector<int64_t>& sizes) {
  auto accumulator = NewCpuMomentAccumulator(pool, spec, nullptr).value();
  Feed(*accumulator, x, 0, x.dim(0), sizes);
  return accumulator->Snapshot().value();
}

// The same bits, but for the digest, which is of chunks.
void ExpectSameBits(const SecondMoment& a, const SecondMoment& b) {
  EXPECT_EQ(a.tokens(), b.tokens());
  EXPECT_EQ(a.sum(), b.sum());
  EXPECT_EQ(a.pending(), b.pending());
  ASSERT_EQ(a.sample().size(), b.sample().size());
  for (int64_t i = 0; i < a.sample().size(); ++i) {
    EXPECT_EQ(a.sample().rows()[i].priority, b.sample().rows()[i].priority);
    EXPECT_EQ(a.sample().rows()[i].values, b.sample().rows()[i].values);
  }
}

// Relative Frobenius error of the mean's diagonal blocks against naive float64 sums.
double RelativeError(const SecondMoment& moment, const Tensor& x, int64_t block_size) {
  const Tensor mean = moment.BlockDiagonalMean(block_size).value();
  std::vector<double> rows(x.elements());
  ConvertToDouble(x.dtype(), x.bytes().data(), x.elements(), rows.data());
  std::vector<double> sum(mean.elements());
  for (int64_t t = 0; t < x.dim(0); ++t) {
    for (int64_t i = 0; i < kCols; ++i) {
      const double* block = rows.data() + t * kCols + i / block_size * block_size;
      for (int64_t j = 0; j < block_size; ++j) {
        sum[i * block_size + j] += rows[t * kCols + i] * block[j];
      }
    }
  }
  double error = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < sum.size(); ++i) {
    const double want = sum[i] / static_cast<double>(x.dim(0));
    error += std::pow(mean.as<double>()[i] - want, 2);
    norm += want * want;
  }
  return std::sqrt(error / norm);
}

TEST(MomentAccumulatorTest, MeetsItsErrorBoundOnAllData) {
  WorkerPool pool(2);
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
    for (const Data data : kAllData) {
      const Tensor x = Activations(data, dtype, kSliceTokens + 100);
      const SecondMoment moment = Accumulate(pool, FullSpec(), x, {100});
      EXPECT_LE(RelativeError(moment, x, kCols), dtype == DType::kBF16 ? 1e-6 : 1e-12)
          << NameOf(dtype) << " data " << static_cast<int>(data);
    }
  }
}

TEST(MomentAccumulatorTest, BlockDiagonalHoldsTheBlocks) {
  WorkerPool pool(2);
  const Tensor x = Activations(Data::kHeavyTailed, DType::kF32, kSliceTokens + 77);
  const SecondMoment moment = Accumulate(pool, BlockSpec(), x, {50});
  EXPECT_LE(RelativeError(moment, x, 40), 1e-12);
}

TEST(MomentAccumulatorTest, ChunkSizesLeaveNoTrace) {
  WorkerPool pool(2);
  for (const MomentSpec& spec : {FullSpec(), BlockSpec()}) {
    for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
      const Tensor x = Activations(Data::kOffset, dtype);
      const SecondMoment whole = Accumulate(pool, spec, x, {kTokens});
      ExpectSameBits(whole, Accumulate(pool, spec, x, {1, 13, 700}));
      ExpectSameBits(whole, Accumulate(pool, spec, x, {kSliceTokens}));
    }
  }
}

TEST(MomentAccumulatorTest, ThreadsLeaveNoTrace) {
  WorkerPool one(1);
  WorkerPool four(4);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const Tensor x = Activations(Data::kGaussian, dtype);
    ExpectSameBits(Accumulate(one, FullSpec(), x, {64}), Accumulate(four, FullSpec(), x, {64}));
  }
}

TEST(MomentAccumulatorTest, EqualValuesGiveEqualBitsInAnyDType) {
  WorkerPool pool(2);
  const Tensor bf16 = Activations(Data::kGaussian, DType::kBF16);
  Tensor f32 = Tensor::Create(DType::kF32, bf16.shape()).value();
  Tensor f64 = Tensor::Create(DType::kF64, bf16.shape()).value();
  ConvertToFloat(DType::kBF16, bf16.bytes().data(), bf16.elements(), f32.as<float>().data());
  ConvertToDouble(DType::kBF16, bf16.bytes().data(), bf16.elements(), f64.as<double>().data());
  const SecondMoment expected = Accumulate(pool, FullSpec(), bf16, {100});
  ExpectSameBits(expected, Accumulate(pool, FullSpec(), f32, {100}));
  ExpectSameBits(expected, Accumulate(pool, FullSpec(), f64, {100}));
}

// One value beyond bfloat16 late in a slice turns the whole slice to float64.
TEST(MomentAccumulatorTest, PrecisionFollowsTheWholeSlice) {
  WorkerPool pool(2);
  Tensor x = Tensor::Create(DType::kF32, {kSliceTokens, kCols}).value();
  for (int64_t i = 0; i < x.elements(); ++i) {
    x.as<float>()[i] = Bf16ToFloat(FloatToBf16(static_cast<float>(i % 97) * 0.37f));
  }
  x.as<float>()[x.elements() - 1] = 1.0f + 0x1p-20f;
  ExpectSameBits(Accumulate(pool, FullSpec(), x, {kSliceTokens}),
                 Accumulate(pool, FullSpec(), x, {1000, 24}));
  EXPECT_LE(RelativeError(Accumulate(pool, FullSpec(), x, {100}), x, kCols), 1e-12);
}

TEST(MomentAccumulatorTest, ContinuesFromASnapshotBitForBit) {
  WorkerPool pool(2);
  for (const MomentSpec& spec : {FullSpec(), BlockSpec()}) {
    for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
      const Tensor x = Activations(Data::kHeavyTailed, dtype);
      auto uninterrupted = NewCpuMomentAccumulator(pool, spec, nullptr).value();
      Feed(*uninterrupted, x, 0, kTokens, {90});

      auto first = NewCpuMomentAccumulator(pool, spec, nullptr).value();
      Feed(*first, x, 0, 990, {90});
      const std::string bytes = first->Snapshot()->Serialize();
      const SecondMoment restored = SecondMoment::Parse(bytes).value();
      EXPECT_EQ(restored.tokens(), 990);
      auto second = NewCpuMomentAccumulator(pool, spec, &restored).value();
      Feed(*second, x, 990, kTokens, {90});

      const SecondMoment expected = uninterrupted->Snapshot().value();
      const SecondMoment got = second->Snapshot().value();
      ExpectSameBits(expected, got);
      EXPECT_EQ(expected.DigestHex(), got.DigestHex());
      // The snapshot left the first accumulator as it was.
      Feed(*first, x, 990, kTokens, {90});
      ExpectSameBits(expected, first->Snapshot().value());
    }
  }
}

TEST(MomentAccumulatorTest, MergedStreamsEqualTheWhole) {
  WorkerPool pool(2);
  const Tensor x = Activations(Data::kGaussian, DType::kBF16);
  auto a = NewCpuMomentAccumulator(pool, FullSpec(), nullptr).value();
  auto b = NewCpuMomentAccumulator(pool, FullSpec(), nullptr).value();
  Feed(*a, x, 0, 1111, {100});
  Feed(*b, x, 1111, kTokens, {100});
  SecondMoment merged = a->Snapshot().value();
  ASSERT_TRUE(merged.Merge(b->Snapshot().value()).ok());
  EXPECT_LE(RelativeError(merged, x, kCols), 1e-6);
  const SecondMoment whole = Accumulate(pool, FullSpec(), x, {100});
  EXPECT_EQ(merged.tokens(), whole.tokens());
  ASSERT_EQ(merged.sample().size(), whole.sample().size());
  for (int64_t i = 0; i < whole.sample().size(); ++i) {
    EXPECT_EQ(merged.sample().rows()[i].values, whole.sample().rows()[i].values);
  }
}

TEST(MomentAccumulatorTest, SumIsSymmetric) {
  WorkerPool pool(2);
  const SecondMoment moment =
      Accumulate(pool, FullSpec(), Activations(Data::kOffset, DType::kBF16), {500});
  for (int64_t i = 0; i < kCols; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      ASSERT_EQ(moment.sum()[i * kCols + j], moment.sum()[j * kCols + i]);
    }
  }
}

TEST(MomentAccumulatorTest, RefusesBadChunksAndStaysAsItWas) {
  WorkerPool pool(2);
  auto accumulator = NewCpuMomentAccumulator(pool, FullSpec(), nullptr).value();
  Feed(*accumulator, Activations(Data::kGaussian, DType::kF32, 10), 0, 10, {10});
  const SecondMoment before = accumulator->Snapshot().value();

  const auto refused = [&](const Tensor& x, int64_t tokens, const std::string& why) {
    const absl::Status status = accumulator->Add("stream", 10, x.dtype(), tokens, x.bytes());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(status.message(), HasSubstr(why));
  };
  Tensor nan = Activations(Data::kGaussian, DType::kF32, 4);
  nan.as<float>()[3 * kCols + 17] = std::numeric_limits<float>::quiet_NaN();
  refused(nan, 4, "row 3, column 17");
  Tensor infinite = Activations(Data::kGaussian, DType::kBF16, 4);
  infinite.as<uint16_t>()[kCols + 2] = 0xff80;
  refused(infinite, 4, "row 1, column 2");
  Tensor beyond = Activations(Data::kGaussian, DType::kF64, 4);
  beyond.as<double>()[2 * kCols] = -1e200;
  refused(beyond, 4, "row 2, column 0");
  refused(Activations(Data::kGaussian, DType::kF32, 4), 5, "got 5 tokens");
  refused(Activations(Data::kGaussian, DType::kF32, 4), 0, "got 0 tokens");
  refused(Tensor::Create(DType::kI32, {4, kCols}).value(), 4, "got I32");

  const SecondMoment after = accumulator->Snapshot().value();
  ExpectSameBits(before, after);
  EXPECT_EQ(before.DigestHex(), after.DigestHex());
}

TEST(MomentAccumulatorTest, StartHasToFit) {
  WorkerPool pool(1);
  const SecondMoment other = SecondMoment::Create({.cols = 8}).value();
  EXPECT_EQ(NewCpuMomentAccumulator(pool, FullSpec(), &other).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// ---- weights and pairs

// R of the residual, no multiple of a tile; large enough for two of them.
constexpr int64_t kResidualCols = 300;

MomentSpec SpecOf(MomentKind kind) {
  MomentSpec spec = FullSpec();
  spec.kind = kind;
  if (kind == MomentKind::kCross) spec.paired_cols = kCols;
  if (kind == MomentKind::kResidual) spec.paired_cols = kResidualCols;
  return spec;
}

// What travels with the rows of `x`: the same tokens' left factors and weights.
struct Beside {
  Tensor paired;
  std::vector<float> weights;
};

Beside BesideOf(MomentKind kind, DType dtype, int64_t tokens) {
  Beside beside;
  std::mt19937 generator(77);
  std::normal_distribution<float> normal;
  if (kind == MomentKind::kWeighted) {
    for (int64_t t = 0; t < tokens; ++t) {
      beside.weights.push_back(t % 5 == 0 ? 0.0f : std::abs(normal(generator)));
    }
    return beside;
  }
  beside.paired = Tensor::Create(dtype, {tokens, SpecOf(kind).paired_cols}).value();
  for (int64_t i = 0; i < beside.paired.elements(); ++i) {
    const float value = 3.0f + normal(generator);
    if (dtype == DType::kBF16) {
      beside.paired.as<uint16_t>()[i] = FloatToBf16(value);
    } else {
      beside.paired.as<float>()[i] = value;
    }
  }
  return beside;
}

TokenChunk ChunkOf(const MomentSpec& spec, const Tensor& x, const Beside& beside, int64_t first,
                   int64_t rows) {
  const auto element = static_cast<int64_t>(SizeOf(x.dtype()));
  TokenChunk chunk = {.dtype = x.dtype(),
                      .tokens = rows,
                      .data = x.bytes().subspan(first * kCols * element, rows * kCols * element)};
  if (!beside.weights.empty()) {
    chunk.weights = absl::MakeConstSpan(beside.weights).subspan(first, rows);
  }
  if (spec.is_paired()) {
    const int64_t row_bytes = spec.paired_cols * element;
    chunk.paired =
        std::as_const(beside.paired).bytes().subspan(first * row_bytes, rows * row_bytes);
  }
  return chunk;
}

void FeedKind(MomentAccumulator& accumulator, const MomentSpec& spec, const Tensor& x,
              const Beside& beside, int64_t first, int64_t last,
              const std::vector<int64_t>& sizes) {
  for (size_t i = 0; first < last; ++i) {
    const int64_t rows = std::min(sizes[i % sizes.size()], last - first);
    const absl::Status status =
        accumulator.Add("stream", first, ChunkOf(spec, x, beside, first, rows));
    ASSERT_TRUE(status.ok()) << status;
    first += rows;
  }
}

SecondMoment AccumulateKind(WorkerPool& pool, const MomentSpec& spec, const Tensor& x,
                            const Beside& beside, const std::vector<int64_t>& sizes) {
  auto accumulator = NewCpuMomentAccumulator(pool, spec, nullptr).value();
  FeedKind(*accumulator, spec, x, beside, 0, x.dim(0), sizes);
  return accumulator->Snapshot().value();
}

std::vector<double> Doubles(const Tensor& tensor) {
  std::vector<double> values(tensor.elements());
  ConvertToDouble(tensor.dtype(), tensor.bytes().data(), tensor.elements(), values.data());
  return values;
}

double RelativeDistance(absl::Span<const double> got, absl::Span<const double> want) {
  double error = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(got[i] - want[i], 2);
    norm += want[i] * want[i];
  }
  return std::sqrt(error / norm);
}

// sum_t p_t l_t x_t^T / divisor, naively.
std::vector<double> NaiveMean(const MomentSpec& spec, const Tensor& x, const Beside& beside) {
  const std::vector<double> right = Doubles(x);
  const std::vector<double> left = spec.is_paired() ? Doubles(beside.paired) : right;
  const int64_t height = spec.rows();
  std::vector<double> sum(height * kCols);
  double divisor = 0.0;
  for (int64_t t = 0; t < x.dim(0); ++t) {
    const double weight = beside.weights.empty() ? 1.0 : beside.weights[t];
    divisor += weight;
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = 0; j < kCols; ++j) {
        sum[i * kCols + j] += weight * left[t * height + i] * right[t * kCols + j];
      }
    }
  }
  for (double& value : sum) value /= divisor;
  return sum;
}

constexpr MomentKind kOtherKinds[] = {MomentKind::kWeighted, MomentKind::kCross,
                                      MomentKind::kResidual};

TEST(MomentAccumulatorKindsTest, MeetTheErrorBound) {
  WorkerPool pool(2);
  for (const MomentKind kind : kOtherKinds) {
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      const MomentSpec spec = SpecOf(kind);
      const Tensor x = Activations(Data::kHeavyTailed, dtype, kSliceTokens + 100);
      const Beside beside = BesideOf(kind, dtype, x.dim(0));
      const SecondMoment moment = AccumulateKind(pool, spec, x, beside, {100});
      const Tensor mean = moment.FullMean().value();
      EXPECT_LE(RelativeDistance(mean.as<double>(), NaiveMean(spec, x, beside)), 1e-12)
          << NameOf(kind) << " " << NameOf(dtype);
    }
  }
}

TEST(MomentAccumulatorKindsTest, WeightsOfOneGiveTheBitsOfTheSecondMoment) {
  WorkerPool pool(2);
  for (const MomentLayout layout : {MomentLayout::kFull, MomentLayout::kBlockDiagonal}) {
    for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
      const MomentSpec plain = layout == MomentLayout::kFull ? FullSpec() : BlockSpec();
      MomentSpec spec = plain;
      spec.kind = MomentKind::kWeighted;
      const Tensor x = Activations(Data::kOffset, dtype);
      Beside beside;
      beside.weights.assign(kTokens, 1.0f);
      const SecondMoment weighted = AccumulateKind(pool, spec, x, beside, {130});
      const SecondMoment expected = Accumulate(pool, plain, x, {100});
      ExpectSameBits(weighted, expected);
      EXPECT_EQ(weighted.divisor(), expected.divisor());
      const Tensor a = weighted.BlockDiagonalMean(40).value();
      const Tensor b = expected.BlockDiagonalMean(40).value();
      EXPECT_EQ(a.as<double>(), b.as<double>());
    }
  }
}

TEST(MomentAccumulatorKindsTest, CrossOfEqualsIsTheSecondMoment) {
  WorkerPool pool(2);
  const MomentSpec spec = SpecOf(MomentKind::kCross);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const Tensor x = Activations(Data::kOffset, dtype);
    Beside beside;
    beside.paired = x.Clone();
    const Tensor cross = AccumulateKind(pool, spec, x, beside, {130}).FullMean().value();
    const Tensor plain = Accumulate(pool, FullSpec(), x, {100}).FullMean().value();
    EXPECT_LE(RelativeDistance(cross.as<double>(), plain.as<double>()), 1e-6);
  }
}

TEST(MomentAccumulatorKindsTest, ChunkSizesAndThreadsLeaveNoTrace) {
  WorkerPool one(1);
  WorkerPool four(4);
  for (const MomentKind kind : kOtherKinds) {
    const MomentSpec spec = SpecOf(kind);
    const Tensor x = Activations(Data::kOffset, DType::kBF16);
    const Beside beside = BesideOf(kind, DType::kBF16, kTokens);
    const SecondMoment whole = AccumulateKind(one, spec, x, beside, {kTokens});
    const SecondMoment pieces = AccumulateKind(four, spec, x, beside, {1, 13, 700});
    ExpectSameBits(whole, pieces);
    EXPECT_EQ(whole.weight_sum(), pieces.weight_sum());
  }
}

TEST(MomentAccumulatorKindsTest, ContinueFromASnapshotBitForBit) {
  WorkerPool pool(2);
  for (const MomentKind kind : kOtherKinds) {
    const MomentSpec spec = SpecOf(kind);
    const Tensor x = Activations(Data::kHeavyTailed, DType::kF32);
    const Beside beside = BesideOf(kind, DType::kF32, kTokens);
    auto first = NewCpuMomentAccumulator(pool, spec, nullptr).value();
    FeedKind(*first, spec, x, beside, 0, 990, {90});
    const SecondMoment restored = SecondMoment::Parse(first->Snapshot()->Serialize()).value();
    auto second = NewCpuMomentAccumulator(pool, spec, &restored).value();
    FeedKind(*second, spec, x, beside, 990, kTokens, {90});
    FeedKind(*first, spec, x, beside, 990, kTokens, {90});
    const SecondMoment expected = first->Snapshot().value();
    const SecondMoment got = second->Snapshot().value();
    ExpectSameBits(expected, got);
    EXPECT_EQ(expected.weight_sum(), got.weight_sum());
    EXPECT_EQ(expected.DigestHex(), got.DigestHex());
  }
}

TEST(MomentAccumulatorKindsTest, SampleIsOfTheRows) {
  WorkerPool pool(2);
  const Tensor x = Activations(Data::kGaussian, DType::kBF16);
  const SecondMoment plain = Accumulate(pool, FullSpec(), x, {100});
  for (const MomentKind kind : kOtherKinds) {
    const SecondMoment moment =
        AccumulateKind(pool, SpecOf(kind), x, BesideOf(kind, DType::kBF16, kTokens), {100});
    ASSERT_EQ(moment.sample().size(), plain.sample().size());
    for (int64_t i = 0; i < plain.sample().size(); ++i) {
      EXPECT_EQ(moment.sample().rows()[i].values, plain.sample().rows()[i].values);
    }
  }
}

TEST(MomentAccumulatorKindsTest, RefuseWhatDoesNotFitAndStayAsTheyWere) {
  WorkerPool pool(2);
  const Tensor x = Activations(Data::kGaussian, DType::kF32, 10);
  for (const MomentKind kind : {MomentKind::kSecondMoment, MomentKind::kWeighted,
                                MomentKind::kCross, MomentKind::kResidual}) {
    const MomentSpec spec = SpecOf(kind);
    Beside beside;
    if (kind != MomentKind::kSecondMoment) beside = BesideOf(kind, DType::kF32, 10);
    auto accumulator = NewCpuMomentAccumulator(pool, spec, nullptr).value();
    FeedKind(*accumulator, spec, x, beside, 0, 10, {10});
    const SecondMoment before = accumulator->Snapshot().value();
    const TokenChunk good = ChunkOf(spec, x, beside, 0, 10);
    const auto refused = [&](const TokenChunk& chunk, const std::string& why) {
      const absl::Status status = accumulator->Add("stream", 10, chunk);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << NameOf(kind) << ": " << why;
      EXPECT_THAT(status.message(), HasSubstr(why));
    };
    std::vector<float> weights(10, 1.0f);
    TokenChunk chunk = good;
    if (kind == MomentKind::kWeighted) {
      chunk.weights = {};
      refused(chunk, "expected 10, one a token; got 0");
      for (const float bad : {-1.0f, std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::infinity()}) {
        weights[7] = bad;
        chunk.weights = weights;
        refused(chunk, "row 7");
      }
    } else {
      chunk.weights = weights;
      refused(chunk, "token weights: expected none");
    }
    chunk = good;
    if (spec.is_paired()) {
      chunk.paired = {};
      refused(chunk, "paired data: expected");
      chunk.paired = good.paired.subspan(0, good.paired.size() - 4);
      refused(chunk, "paired data: expected");
      Tensor nan = beside.paired.Clone();
      nan.as<float>()[3 * spec.paired_cols + 17] = std::numeric_limits<float>::quiet_NaN();
      chunk.paired = std::as_const(nan).bytes();
      refused(chunk, "row 3, column 17");
    } else {
      chunk.paired = good.data;
      refused(chunk, "paired data: expected none");
    }
    const SecondMoment after = accumulator->Snapshot().value();
    ExpectSameBits(before, after);
    EXPECT_EQ(before.weight_sum(), after.weight_sum());
    EXPECT_EQ(before.DigestHex(), after.DigestHex());
  }
}

}  // namespace
}  // namespace quantd::compute
