// Second moments of every kind: CUDA against the CPU, and against itself in other pieces.
#include <gmock/gmock.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "compute/second_moment/second_moment.h"
#include "tests/compute/backend/cuda/cuda_test.h"

namespace quantd::compute {
namespace {

using testing::HasSubstr;

constexpr double kBf16Bound = 1e-6;
constexpr double kFloat64Bound = 1e-12;

// C of kCross, kWeighted and the rest; R of kResidual.
constexpr int64_t kResidualCols = 300;

MomentSpec Spec(int64_t cols, MomentKind kind = MomentKind::kSecondMoment) {
  MomentSpec spec = {.kind = kind, .cols = cols, .sample_rows = 16, .sample_seed = 3};
  if (kind == MomentKind::kCross) spec.paired_cols = cols;
  if (kind == MomentKind::kResidual) spec.paired_cols = kResidualCols;
  return spec;
}

MomentSpec BlockSpec(int64_t cols, int64_t block_size, MomentKind kind) {
  MomentSpec spec = Spec(cols, kind);
  spec.layout = MomentLayout::kBlockDiagonal;
  spec.block_size = block_size;
  return spec;
}

enum class Data { kGaussian, kOffset, kHeavyTailed, kConstant, kSigns, kGrid, kMassive };
constexpr Data kAllData[] = {Data::kGaussian, Data::kOffset, Data::kHeavyTailed, Data::kConstant,
                             Data::kSigns,    Data::kGrid,   Data::kMassive};

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
      return std::round(std::clamp(2 * z, -7.0f, 7.0f)) * 0.1037f;
    case Data::kMassive:
      return column == 5 ? 103.7f : z;
  }
  return 0.0f;
}

Tensor Tokens(Data data, DType dtype, int64_t tokens, int64_t cols, int seed = 0) {
  Tensor x = Tensor::Create(dtype, {tokens, cols}).value();
  std::mt19937 generator(static_cast<int>(data) + 100 * seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < x.elements(); ++i) {
    const float value = Draw(data, i % cols, normal(generator));
    switch (dtype) {
      case DType::kF64:
        x.as<double>()[i] = static_cast<double>(value) * (1.0 + 1e-10);
        break;
      case DType::kF32:
        x.as<float>()[i] = value;
        break;
      case DType::kF16:
        x.as<uint16_t>()[i] = FloatToF16(value);
        break;
      default:
        x.as<uint16_t>()[i] = FloatToBf16(value);
    }
  }
  return x;
}

// A stream of tokens with what travels beside them.
struct Feed {
  MomentSpec spec;
  Tensor x;
  Tensor paired;
  std::vector<float> weights;

  Feed(const MomentSpec& of, Data data, DType dtype, int64_t tokens)
      : spec(of), x(Tokens(data, dtype, tokens, of.cols)) {
    if (spec.is_paired()) paired = Tokens(Data::kOffset, dtype, tokens, spec.paired_cols, 1);
    if (spec.kind != MomentKind::kWeighted) return;
    for (int64_t t = 0; t < tokens; ++t) {
      weights.push_back(t % 5 == 0 ? 0.0f : static_cast<float>(t % 97) * 0.01f);
    }
  }

  TokenChunk Chunk(int64_t first, int64_t rows) const {
    const auto element = static_cast<int64_t>(SizeOf(x.dtype()));
    TokenChunk chunk = {.dtype = x.dtype(), .tokens = rows};
    chunk.data = x.bytes().subspan(first * spec.cols * element, rows * spec.cols * element);
    if (!weights.empty()) chunk.weights = absl::MakeConstSpan(weights).subspan(first, rows);
    if (!spec.is_paired()) return chunk;
    const int64_t row_bytes = spec.paired_cols * element;
    chunk.paired = std::as_const(paired).bytes().subspan(first * row_bytes, rows * row_bytes);
    return chunk;
  }

  // Rows [first, last) in chunks of the given sizes, over and over.
  void Into(MomentAccumulator& accumulator, int64_t first, int64_t last,
            const std::vector<int64_t>& sizes) const {
    for (size_t i = 0; first < last; ++i) {
      const int64_t rows = std::min(sizes[i % sizes.size()], last - first);
      const absl::Status status = accumulator.Add("stream", first, Chunk(first, rows));
      ASSERT_TRUE(status.ok()) << status;
      first += rows;
    }
  }
};

class CudaMomentTest : public CudaTest {
 protected:
  static SecondMoment Accumulate(Side& side, const Feed& feed, const std::vector<int64_t>& sizes) {
    auto accumulator = side.backend->NewAccumulator(feed.spec, nullptr).value();
    feed.Into(*accumulator, 0, feed.x.dim(0), sizes);
    return accumulator->Snapshot().value();
  }

  static std::vector<double> Mean(const SecondMoment& moment) {
    const Tensor mean = moment.spec().layout == MomentLayout::kFull
                            ? moment.FullMean().value()
                            : moment.BlockDiagonalMean(moment.spec().block_size).value();
    return {mean.as<double>().begin(), mean.as<double>().end()};
  }

  static void ExpectSameBits(const SecondMoment& a, const SecondMoment& b, bool same_chunks) {
    EXPECT_EQ(a.tokens(), b.tokens());
    EXPECT_EQ(a.weight_sum(), b.weight_sum());
    EXPECT_TRUE(a.sum() == b.sum()) << "sums differ";
    EXPECT_TRUE(a.pending() == b.pending()) << "pending rows differ";
    ExpectSameSample(a, b);
    if (same_chunks) {
      EXPECT_EQ(a.DigestHex(), b.DigestHex());
    }
  }
  static void ExpectSameSample(const SecondMoment& a, const SecondMoment& b) {
    ASSERT_EQ(a.sample().size(), b.sample().size());
    for (int64_t i = 0; i < a.sample().size(); ++i) {
      EXPECT_EQ(a.sample().rows()[i].priority, b.sample().rows()[i].priority);
      EXPECT_EQ(a.sample().rows()[i].values, b.sample().rows()[i].values);
    }
  }

  // Sum, pending rows and everything beside them against the CPU's.
  void ExpectLikeCpu(const Feed& feed, double bound) {
    const SecondMoment cpu = Accumulate(cpu_, feed, {700});
    const SecondMoment cuda = Accumulate(cuda_, feed, {700});
    EXPECT_LE(RelativeDistance(Mean(cuda), Mean(cpu)), bound);
    EXPECT_TRUE(cuda.pending() == cpu.pending());
    EXPECT_EQ(cuda.DigestHex(), cpu.DigestHex());
    EXPECT_EQ(cuda.tokens(), cpu.tokens());
    EXPECT_EQ(cuda.weight_sum(), cpu.weight_sum());
    ExpectSameSample(cuda, cpu);
  }
};

TEST_F(CudaMomentTest, MeetsItsErrorBoundOnAllData) {
  for (const Data data : kAllData) {
    for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF16, DType::kF64}) {
      SCOPED_TRACE(testing::Message() << NameOf(dtype) << " data " << static_cast<int>(data));
      ExpectLikeCpu(Feed(Spec(200), data, dtype, 2 * kSliceTokens + 100),
                    dtype == DType::kBF16 ? kBf16Bound : kFloat64Bound);
    }
  }
}

// One column, less than a tile, tiles in odd and even numbers, edges on all sides.
TEST_F(CudaMomentTest, AllSizes) {
  for (const int64_t cols : {1, 37, 128, 129, 256, 384, 515, 1100}) {
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(testing::Message() << cols << " columns of " << NameOf(dtype));
      ExpectLikeCpu(Feed(Spec(cols), Data::kHeavyTailed, dtype, kSliceTokens + 10),
                    dtype == DType::kBF16 ? kBf16Bound : kFloat64Bound);
    }
  }
}

TEST_F(CudaMomentTest, KindsAndLayouts) {
  for (const MomentKind kind : {MomentKind::kWeighted, MomentKind::kCross, MomentKind::kResidual}) {
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(testing::Message() << NameOf(kind) << " of " << NameOf(dtype));
      ExpectLikeCpu(Feed(Spec(131, kind), Data::kOffset, dtype, 2 * kSliceTokens + 33),
                    kFloat64Bound);
    }
  }
  for (const MomentKind kind : {MomentKind::kSecondMoment, MomentKind::kWeighted}) {
    for (const int64_t block_size : {2, 32, 40, 256}) {
      SCOPED_TRACE(testing::Message() << NameOf(kind) << " in blocks of " << block_size);
      ExpectLikeCpu(
          Feed(BlockSpec(1280, block_size, kind), Data::kOffset, DType::kBF16, kSliceTokens + 33),
          kFloat64Bound);
    }
  }
}

TEST_F(CudaMomentTest, ChunkSizesLeaveNoTrace) {
  // More slices than are gathered before they are multiplied.
  constexpr int64_t kTokens = 19 * kSliceTokens + 300;
  for (const MomentSpec& spec : {Spec(200), BlockSpec(200, 40, MomentKind::kSecondMoment),
                                 Spec(200, MomentKind::kWeighted), Spec(200, MomentKind::kCross)}) {
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(testing::Message() << NameOf(spec.kind) << " of " << NameOf(dtype));
      const Feed feed(spec, Data::kOffset, dtype, kTokens);
      const SecondMoment whole = Accumulate(cuda_, feed, {kTokens});
      ExpectSameBits(whole, Accumulate(cuda_, feed, {kTokens}), true);
      ExpectSameBits(whole, Accumulate(cuda_, feed, {1, 13, 7000}), false);
      ExpectSameBits(whole, Accumulate(cuda_, feed, {kSliceTokens}), false);
    }
  }
}

TEST_F(CudaMomentTest, EqualValuesGiveEqualBitsInAnyDType) {
  const Feed bf16(Spec(200), Data::kGaussian, DType::kBF16, 2 * kSliceTokens + 5);
  const SecondMoment expected = Accumulate(cuda_, bf16, {100});
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    Feed wide(Spec(200), Data::kGaussian, dtype, 2 * kSliceTokens + 5);
    if (dtype == DType::kF32) {
      ConvertToFloat(DType::kBF16, bf16.x.bytes().data(), bf16.x.elements(),
                     wide.x.as<float>().data());
    } else {
      ConvertToDouble(DType::kBF16, bf16.x.bytes().data(), bf16.x.elements(),
                      wide.x.as<double>().data());
    }
    ExpectSameBits(expected, Accumulate(cuda_, wide, {100}), false);
  }
  // Weights of 1 leave the bits as they are.
  Feed weighted(Spec(200, MomentKind::kWeighted), Data::kGaussian, DType::kBF16,
                2 * kSliceTokens + 5);
  std::fill(weighted.weights.begin(), weighted.weights.end(), 1.0f);
  EXPECT_TRUE(Accumulate(cuda_, weighted, {100}).sum() == expected.sum());
}

// Slices of either precision one after the other, and one that turns late.
TEST_F(CudaMomentTest, PrecisionFollowsTheSlice) {
  Feed feed(Spec(200), Data::kGaussian, DType::kF32, 6 * kSliceTokens + 700);
  for (float& value : feed.x.as<float>()) value = Bf16ToFloat(FloatToBf16(value));
  for (const int64_t row : {2 * kSliceTokens - 1, 4 * kSliceTokens + 17, 6 * kSliceTokens + 600}) {
    feed.x.as<float>()[row * 200 + 3] = 1.0f + 0x1p-20f;
  }
  ExpectLikeCpu(feed, kBf16Bound);
  const SecondMoment whole = Accumulate(cuda_, feed, {10000});
  ExpectSameBits(whole, Accumulate(cuda_, feed, {900, 1}), false);
}

TEST_F(CudaMomentTest, ContinuesFromASnapshotBitForBitOnEitherDevice) {
  constexpr int64_t kTokens = 4 * kSliceTokens + 300;
  for (const MomentSpec& spec :
       {Spec(200), BlockSpec(200, 40, MomentKind::kWeighted), Spec(200, MomentKind::kResidual)}) {
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(testing::Message() << NameOf(spec.kind) << " of " << NameOf(dtype));
      const Feed feed(spec, Data::kHeavyTailed, dtype, kTokens);
      const SecondMoment expected = Accumulate(cuda_, feed, {90});

      auto first = cuda_.backend->NewAccumulator(spec, nullptr).value();
      feed.Into(*first, 0, 2790, {90});
      const SecondMoment restored = SecondMoment::Parse(first->Snapshot()->Serialize()).value();
      auto second = cuda_.backend->NewAccumulator(spec, &restored).value();
      feed.Into(*second, 2790, kTokens, {90});
      ExpectSameBits(expected, second->Snapshot().value(), true);
      // The snapshot left the first accumulator as it was.
      feed.Into(*first, 2790, kTokens, {90});
      ExpectSameBits(expected, first->Snapshot().value(), true);

      auto elsewhere = cpu_.backend->NewAccumulator(spec, &restored).value();
      feed.Into(*elsewhere, 2790, kTokens, {90});
      const SecondMoment moved = elsewhere->Snapshot().value();
      EXPECT_LE(RelativeDistance(Mean(moved), Mean(expected)), kBf16Bound);
      EXPECT_EQ(moved.DigestHex(), expected.DigestHex());
      auto back = cuda_.backend->NewAccumulator(spec, &moved).value();
      ExpectSameBits(moved, back->Snapshot().value(), true);
    }
  }
}

TEST_F(CudaMomentTest, SumIsSymmetric) {
  const SecondMoment moment =
      Accumulate(cuda_, Feed(Spec(300), Data::kOffset, DType::kBF16, 2 * kSliceTokens), {500});
  for (int64_t i = 0; i < 300; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      ASSERT_EQ(moment.sum()[i * 300 + j], moment.sum()[j * 300 + i]) << i << ", " << j;
    }
  }
}

TEST_F(CudaMomentTest, RefusesWhatTheCpuRefusesAndStaysAsItWas) {
  constexpr int64_t kCols = 200;
  const auto cuda = cuda_.backend->NewAccumulator(Spec(kCols), nullptr).value();
  const auto cpu = cpu_.backend->NewAccumulator(Spec(kCols), nullptr).value();
  const Feed feed(Spec(kCols), Data::kGaussian, DType::kF32, 10);
  feed.Into(*cuda, 0, 10, {10});
  feed.Into(*cpu, 0, 10, {10});
  const SecondMoment before = cuda->Snapshot().value();

  const auto refused = [&](const Tensor& x, int64_t tokens, const std::string& why) {
    const absl::Status status = cuda->Add("stream", 10, x.dtype(), tokens, x.bytes());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
    EXPECT_EQ(status, cpu->Add("stream", 10, x.dtype(), tokens, x.bytes()));
  };
  Tensor nan = Tokens(Data::kGaussian, DType::kF32, 4, kCols);
  nan.as<float>()[3 * kCols + 17] = std::numeric_limits<float>::quiet_NaN();
  refused(nan, 4, "row 3, column 17");
  Tensor infinite = Tokens(Data::kGaussian, DType::kBF16, 4, kCols);
  infinite.as<uint16_t>()[kCols + 2] = 0xff80;
  refused(infinite, 4, "row 1, column 2");
  Tensor beyond = Tokens(Data::kGaussian, DType::kF64, 4, kCols);
  beyond.as<double>()[2 * kCols] = -1e200;
  refused(beyond, 4, "row 2, column 0");
  refused(Tokens(Data::kGaussian, DType::kF32, 4, kCols), 5, "got 5 tokens");
  refused(Tensor::Create(DType::kI32, {4, kCols}).value(), 4, "got I32");
  ExpectSameBits(before, cuda->Snapshot().value(), true);
}

TEST_F(CudaMomentTest, StartHasToFit) {
  const SecondMoment other = SecondMoment::Create({.cols = 8}).value();
  EXPECT_EQ(cuda_.backend->NewAccumulator(Spec(200), &other).status(),
            cpu_.backend->NewAccumulator(Spec(200), &other).status());
}

// Many at once share the pinned memory; each keeps its own sum.
TEST_F(CudaMomentTest, AccumulatorsRunBesideEachOther) {
  const Feed feed(Spec(96), Data::kGaussian, DType::kBF16, 3 * kSliceTokens + 7);
  const SecondMoment expected = Accumulate(cuda_, feed, {100});
  std::vector<std::unique_ptr<MomentAccumulator>> all;
  for (int i = 0; i < 12; ++i)
    all.push_back(cuda_.backend->NewAccumulator(feed.spec, nullptr).value());
  for (int64_t first = 0; first < feed.x.dim(0); first += 100) {
    for (const auto& accumulator : all) {
      feed.Into(*accumulator, first, std::min(first + 100, feed.x.dim(0)), {100});
    }
  }
  for (const auto& accumulator : all) {
    ExpectSameBits(expected, accumulator->Snapshot().value(), true);
  }
}

}  // namespace
}  // namespace quantd::compute
