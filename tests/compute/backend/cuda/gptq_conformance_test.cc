// GPTQ: CUDA against the CPU. Sums are added up in another order, so that a code may differ where a
// value lies on a rounding boundary; what is quantized must be as good.
#include <gmock/gmock.h>

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/compute/backend/cuda/cuda_test.h"

namespace quantd::compute {
namespace {

using testing::HasSubstr;

constexpr double kEqualCodes = 0.995;

struct Case {
  Recipe recipe;
  TransformKind transform = TransformKind::kIdentity;
  Solver solver = Solver::kMarginal;
  int64_t block = 32;
  BlockOrder order = BlockOrder::kAscending;
  bool act_order = false;
  bool drift = false;
  bool given = false;
  int64_t rows = 70;
  int64_t cols = 192;
};

std::string Describe(const Case& c) {
  return absl::StrCat(ToJson(c.recipe), " ", NameOf(c.transform), " ", NameOf(c.solver),
                      " B=", c.block, " ", NameOf(c.order), c.act_order ? " act_order" : "",
                      c.drift ? " drift" : "", c.given ? " given" : "", " ", c.rows, " x ", c.cols);
}

class CudaGptqTest : public CudaTest {
 protected:
  struct Result {
    std::vector<uint8_t> codes;
    std::vector<double> scales;
    std::vector<double> decoded;
    std::vector<double> dequantized;
    std::vector<double> tx;
    std::optional<float> global;
    double error = 0.0;  // tr(dW M dW^T)

    friend bool operator==(const Result&, const Result&) = default;
  };

  static Recipe Format(Format format, std::optional<ScaleRule> rule = std::nullopt,
                       int64_t group = 0, std::optional<Granularity> granularity = std::nullopt) {
    Recipe recipe;
    recipe.format = format;
    recipe.scale_rule = rule;
    recipe.group_size = group;
    recipe.granularity = granularity;
    return ResolveRecipe(recipe).value();
  }

  static Tensor Drifted(const Tensor& moment) {
    Tensor cross = Tensor::Create(DType::kF64, {moment.dim(0), moment.dim(1)}).value();
    std::mt19937 generator(3);
    std::normal_distribution<double> normal;
    const int64_t cols = moment.dim(0);
    for (int64_t i = 0; i < cols * cols; ++i) {
      cross.as<double>()[i] = moment.as<double>()[i] * (1.0 + 0.02 * normal(generator));
    }
    return cross;
  }

  static absl::StatusOr<GptqSolution> Solve(Side& side, const Case& c, const Tensor& weight,
                                            const Tensor& moment) {
    const Tensor cross = Drifted(moment);
    Tensor given;
    GptqProblem p;
    p.transform = c.transform;
    p.solver = c.solver;
    p.block_size = c.block;
    p.seed = 5;
    p.order = c.order;
    p.act_order = c.act_order;
    p.weight = side.Upload(weight);
    p.second_moment = side.Upload(moment);
    if (c.drift) p.cross_moment = side.Upload(cross);
    if (c.given) {
      given = Random({c.cols / c.block, c.block, c.block}, 9, DType::kF32);
      p.given_transform = &given;
    }
    const auto format = NumberFormat::Create(c.recipe, c.cols);
    return side.backend->SolveGptq(*side.stream, *format, p);
  }

  Result Run(Side& side, const Case& c, const Tensor& weight, const Tensor& moment) {
    GptqSolution solved = Solve(side, c, weight, moment).value();
    const EncodedMatrix encoded =
        DownloadEncoded(*side.backend, *side.stream, solved.quantized).value();
    Result result;
    result.codes.resize(weight.elements());
    const auto format = NumberFormat::Create(c.recipe, c.cols);
    UnpackCodes(encoded.codes.bytes().data(), format->element_bits(), absl::MakeSpan(result.codes));
    result.scales.resize(encoded.scales.elements());
    format->UnpackScales(encoded.scales.bytes().data(), encoded.global_scale,
                         absl::MakeSpan(result.scales));
    result.global = encoded.global_scale;
    result.decoded = side.Values(solved.quantized.decoded);
    result.dequantized = side.Values(solved.quantized.dequantized);
    if (!solved.transform.transform.identity)
      result.tx = side.Values(solved.transform.transform.tx);
    result.error = ErrorOf(weight, result.dequantized, moment);
    // What is stored decodes to what was measured.
    std::vector<double> stored(weight.elements());
    EXPECT_TRUE(DecodeMatrix(*format, encoded, absl::MakeSpan(stored)).ok());
    EXPECT_LT(RelativeDistance(stored, result.decoded), 1e-12);
    return result;
  }

  double ErrorOf(const Tensor& weight, const std::vector<double>& dequantized,
                 const Tensor& moment) {
    Tensor other = Tensor::Create(DType::kF64, weight.shape()).value();
    std::copy(dequantized.begin(), dequantized.end(), other.as<double>().begin());
    const WeightError error =
        cpu_.backend
            ->MeasureWeightError(*cpu_.stream, cpu_.Upload(weight), cpu_.Upload(other),
                                 cpu_.Upload(moment), ErrorDetail::kRows)
            .value();
    double sum = 0.0;
    for (const double row : error.by_row) sum += row;
    return sum;
  }

  void ExpectSame(const Case& c) {
    SCOPED_TRACE(Describe(c));
    const Tensor weight = Random({c.rows, c.cols}, 1);
    const Tensor moment = RandomMoment(c.cols, 2);
    const Result cuda = Run(cuda_, c, weight, moment);
    const Result cpu = Run(cpu_, c, weight, moment);
    size_t equal = 0;
    for (size_t i = 0; i < cpu.codes.size(); ++i) equal += cuda.codes[i] == cpu.codes[i] ? 1 : 0;
    EXPECT_GE(static_cast<double>(equal), kEqualCodes * static_cast<double>(cpu.codes.size()));
    const bool aware = c.transform == TransformKind::kWus || c.transform == TransformKind::kWush;
    EXPECT_NEAR(cuda.error, cpu.error, (aware ? 1e-3 : 1e-6) * cpu.error);
    EXPECT_EQ(cuda.global, cpu.global);
    EXPECT_LT(RelativeDistance(cuda.tx, cpu.tx), 1e-5);
    EXPECT_TRUE(Run(cuda_, c, weight, moment) == cuda) << "other bits the second time";
  }
};

TEST_F(CudaGptqTest, EveryFormatWithoutTransform) {
  for (const Recipe& recipe :
       {Format(Format::kMxfp4), Format(Format::kMxfp4, ScaleRule::kOcp), Format(Format::kNvfp4),
        Format(Format::kNvfp4, ScaleRule::kAmax), Format(Format::kInt4, std::nullopt, 32),
        Format(Format::kInt2, std::nullopt, 48), Format(Format::kInt3, std::nullopt, 96),
        Format(Format::kInt8, std::nullopt, 0, Granularity::kRow),
        Format(Format::kFp8, std::nullopt, 0, Granularity::kRow),
        Format(Format::kFp8, std::nullopt, 0, Granularity::kBlock128)}) {
    for (const BlockOrder order : {BlockOrder::kAscending, BlockOrder::kDescending}) {
      ExpectSame({.recipe = recipe, .order = order});
      ExpectSame({.recipe = recipe, .order = order, .act_order = true, .rows = 37, .cols = 96});
    }
  }
}

TEST_F(CudaGptqTest, EveryTransform) {
  for (const Recipe& recipe : {Format(Format::kMxfp4), Format(Format::kNvfp4)}) {
    const int64_t group = recipe.group_size;
    for (const TransformKind kind : {TransformKind::kHadamard, TransformKind::kRandom,
                                     TransformKind::kWus, TransformKind::kWush}) {
      for (const BlockOrder order : {BlockOrder::kAscending, BlockOrder::kDescending}) {
        ExpectSame({.recipe = recipe, .transform = kind, .block = group, .order = order});
      }
      ExpectSame({.recipe = recipe, .transform = kind, .block = group, .act_order = true});
    }
    ExpectSame({.recipe = recipe,
                .transform = TransformKind::kWush,
                .solver = Solver::kConditional,
                .block = group});
    ExpectSame({.recipe = recipe,
                .transform = TransformKind::kWush,
                .solver = Solver::kConditional,
                .block = group,
                .order = BlockOrder::kDescending,
                .act_order = true});
  }
}

// Units of several blocks, of several groups, and both.
TEST_F(CudaGptqTest, BlocksThatAreNoGroups) {
  for (const TransformKind kind : {TransformKind::kHadamard, TransformKind::kWush}) {
    ExpectSame({.recipe = Format(Format::kMxfp4), .transform = kind, .block = 16});
    ExpectSame({.recipe = Format(Format::kNvfp4), .transform = kind, .block = 32});
    ExpectSame({.recipe = Format(Format::kMxfp4), .transform = kind, .block = 64});
    ExpectSame({.recipe = Format(Format::kInt4, std::nullopt, 48), .transform = kind, .block = 32});
    ExpectSame({.recipe = Format(Format::kInt4, std::nullopt, 0, Granularity::kRow),
                .transform = kind,
                .rows = 40,
                .cols = 320});
    ExpectSame({.recipe = Format(Format::kFp8, std::nullopt, 0, Granularity::kBlock128),
                .transform = kind,
                .rows = 150,
                .cols = 384});
  }
  ExpectSame({.recipe = Format(Format::kMxfp4),
              .transform = TransformKind::kWush,
              .solver = Solver::kConditional,
              .block = 16});
}

// More than one panel.
TEST_F(CudaGptqTest, ManyUnits) {
  ExpectSame({.recipe = Format(Format::kMxfp4), .rows = 33, .cols = 608});
  ExpectSame({.recipe = Format(Format::kMxfp4),
              .transform = TransformKind::kWush,
              .rows = 100,
              .cols = 608});
  ExpectSame({.recipe = Format(Format::kNvfp4),
              .transform = TransformKind::kWush,
              .block = 16,
              .rows = 40,
              .cols = 528});
  ExpectSame({.recipe = Format(Format::kInt8, std::nullopt, 0, Granularity::kRow),
              .rows = 20,
              .cols = 600});
}

TEST_F(CudaGptqTest, DriftAndGivenTransforms) {
  for (const BlockOrder order : {BlockOrder::kAscending, BlockOrder::kDescending}) {
    ExpectSame({.recipe = Format(Format::kMxfp4), .order = order, .drift = true});
    ExpectSame({.recipe = Format(Format::kNvfp4),
                .transform = TransformKind::kWush,
                .block = 16,
                .order = order,
                .drift = true});
    ExpectSame({.recipe = Format(Format::kMxfp4), .order = order, .given = true});
    ExpectSame({.recipe = Format(Format::kInt4, std::nullopt, 64),
                .block = 16,
                .order = order,
                .act_order = true,
                .given = true});
  }
}

// With a diagonal moment and no transform nothing is fed back: RTN, bit for bit.
TEST_F(CudaGptqTest, ADiagonalMomentIsRtn) {
  const Tensor weight = Random({45, 192}, 4);
  Tensor moment = Tensor::Create(DType::kF64, {192, 192}).value();
  for (int64_t i = 0; i < 192; ++i) moment.as<double>()[i * 193] = 1.0 + static_cast<double>(i % 7);
  for (const Recipe& recipe :
       {Format(Format::kMxfp4), Format(Format::kNvfp4), Format(Format::kInt4, std::nullopt, 64)}) {
    const Case c = {.recipe = recipe};
    const auto format = NumberFormat::Create(recipe, 192);
    BlockTransform identity;
    identity.identity = true;
    const QuantizedWeight rtn =
        cpu_.backend->RoundToNearest(*cpu_.stream, *format, identity, cpu_.Upload(weight)).value();
    EXPECT_EQ(Run(cuda_, c, weight, moment).decoded, cpu_.Values(rtn.decoded));
  }
}

TEST_F(CudaGptqTest, DampsAndRefusesAsTheCpuDoes) {
  const Tensor weight = Random({20, 64}, 5);
  const Case c = {.recipe = Format(Format::kMxfp4), .cols = 64};
  Tensor moment = RandomMoment(64, 6);
  for (int64_t j = 0; j < 64; ++j) {
    moment.as<double>()[3 * 64 + j] = moment.as<double>()[j * 64 + 3] = 0.0;  // dead
    if (j != 9) moment.as<double>()[9 * 64 + j] = moment.as<double>()[j * 64 + 9] *= 1.2;
  }
  const GptqSolution cuda = Solve(cuda_, c, weight, moment).value();
  const GptqSolution cpu = Solve(cpu_, c, weight, moment).value();
  EXPECT_EQ(cuda.retries, cpu.retries);
  EXPECT_EQ(cuda.damping, cpu.damping);
  moment.as<double>()[5 * 65] = -1.0;
  EXPECT_EQ(Solve(cuda_, c, weight, moment).status(), Solve(cpu_, c, weight, moment).status());
  moment.as<double>()[5 * 65] = 1.0;
  moment.as<double>()[40 * 64 + 7] += 1e3;
  const absl::Status refused = Solve(cuda_, c, weight, moment).status();
  EXPECT_EQ(refused, Solve(cpu_, c, weight, moment).status());
  EXPECT_THAT(std::string(refused.message()), HasSubstr("row 40"));
}

}  // namespace
}  // namespace quantd::compute
