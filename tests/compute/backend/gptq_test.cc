// SolveGptq of the CPU backend: the golden data, the textbook recursion, what must hold for every
// format, transform and order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/cpu_backend.h"
#include "compute/formats/safetensors.h"

namespace quantd::compute {
namespace {

using testing::HasSubstr;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr TransformKind kTransforms[] = {TransformKind::kIdentity, TransformKind::kHadamard,
                                         TransformKind::kRandom, TransformKind::kWus,
                                         TransformKind::kWush};
constexpr BlockOrder kOrders[] = {BlockOrder::kAscending, BlockOrder::kDescending};

Matrix Gaussian(int64_t rows, int64_t cols, int seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Matrix m(rows, cols);
  for (int64_t i = 0; i < m.size(); ++i) m.data()[i] = normal(generator);
  return m;
}

// Inputs with correlated columns of unequal size: where feedback pays.
Matrix CorrelatedMoment(int64_t cols, int seed, int64_t tokens = 400) {
  Matrix mix = Gaussian(cols, cols, seed) / std::sqrt(static_cast<double>(cols));
  mix += Matrix::Identity(cols, cols);
  Matrix x = Gaussian(tokens, cols, seed + 1) * mix;
  for (int64_t c = 0; c < cols; ++c) x.col(c) *= std::exp(0.7 * Gaussian(1, 1, 100 + c)(0, 0));
  return x.transpose() * x / static_cast<double>(tokens);
}

Tensor ToTensor(const Matrix& m) {
  Tensor tensor = Tensor::Create(DType::kF64, {m.rows(), m.cols()}).value();
  std::copy_n(m.data(), m.size(), tensor.as<double>().data());
  return tensor;
}

class GptqOpTest : public testing::Test {
 protected:
  DeviceTensor Upload(const Matrix& m) { return backend_->Upload(*stream_, ToTensor(m)).value(); }
  Matrix Download(const DeviceTensor& tensor) {
    const Tensor host = backend_->Download(*stream_, tensor).value();
    return Eigen::Map<const Matrix>(host.as<double>().data(), host.dim(0), host.dim(1));
  }
  EncodedMatrix Encoded(const QuantizedWeight& quantized) {
    return DownloadEncoded(*backend_, *stream_, quantized).value();
  }
  GptqProblem Problem(const Matrix& weight, const Matrix& moment) {
    return {.weight = Upload(weight), .second_moment = Upload(moment)};
  }
  GptqSolution Solve(const NumberFormat& format, const GptqProblem& problem) {
    auto solved = backend_->SolveGptq(*stream_, format, problem);
    EXPECT_TRUE(solved.ok()) << solved.status();
    return *std::move(solved);
  }
  GptqSolution Solve(const Recipe& recipe, const GptqProblem& problem) {
    return Solve(*NumberFormat::Create(recipe, problem.weight.dim(1)), problem);
  }
  // tr(dW M dW^T).
  double Error(const Matrix& weight, const QuantizedWeight& quantized, const Matrix& moment) {
    const Matrix d = weight - Download(quantized.dequantized);
    return (d * moment).cwiseProduct(d).sum();
  }
  // RTN after the transform that RTN solves.
  QuantizedWeight RoundToNearest(const Recipe& recipe, const GptqProblem& p, const Matrix& moment) {
    const int64_t b = p.block_size;
    Tensor blocks = Tensor::Create(DType::kF64, {moment.rows() / b, b, b}).value();
    for (int64_t i = 0; i < moment.rows(); ++i) {
      for (int64_t j = 0; j < b; ++j) {
        blocks.as<double>()[i * b + j] = moment(i, i / b * b + j);
      }
    }
    const bool conditional = p.solver == Solver::kConditional;
    auto transform = backend_->SolveTransforms(
        *stream_, {.kind = p.transform,
                   .solver = p.solver,
                   .block_size = b,
                   .damping = p.transform_damping,
                   .seed = p.seed,
                   .weight = p.weight,
                   .second_moment =
                       conditional ? p.second_moment : backend_->Upload(*stream_, blocks).value()});
    EXPECT_TRUE(transform.ok()) << transform.status();
    const auto format = NumberFormat::Create(recipe, p.weight.dim(1));
    return backend_->RoundToNearest(*stream_, *format, transform->transform, p.weight).value();
  }

  const std::unique_ptr<Backend> backend_ = NewCpuBackend(2);
  const std::unique_ptr<Stream> stream_ = backend_->NewStream(nullptr).value();
};

// Every format, with scales of a group, a row and a block.
std::vector<Recipe> Formats() {
  std::vector<Recipe> recipes = {
      {.format = Format::kMxfp4},
      {.format = Format::kMxfp4, .scale_rule = ScaleRule::kOcp},
      {.format = Format::kMxfp4, .transform_block_size = 64},
      {.format = Format::kNvfp4},
      {.format = Format::kNvfp4, .scale_rule = ScaleRule::kAmax, .transform_block_size = 32},
      {.format = Format::kInt2},
      {.format = Format::kInt3, .scale_rule = ScaleRule::kGaussianMse},
      {.format = Format::kInt4},
      {.format = Format::kInt4, .scale_rule = ScaleRule::kGaussianMse, .group_size = 64},
      {.format = Format::kInt4, .granularity = Granularity::kRow},
      {.format = Format::kInt4, .group_size = 96, .transform_block_size = 32},
      {.format = Format::kInt8, .scale_rule = ScaleRule::kCompressedTensors},
      {.format = Format::kInt8, .granularity = Granularity::kRow},
      {.format = Format::kFp8},
      {.format = Format::kFp8, .granularity = Granularity::kBlock128},
  };
  for (Recipe& recipe : recipes) recipe = ResolveRecipe(recipe).value();
  return recipes;
}

std::string Describe(const Recipe& recipe, TransformKind kind, BlockOrder order) {
  return ToJson(recipe) + " " + std::string(NameOf(kind)) + " " + std::string(NameOf(order));
}

TEST_F(GptqOpTest, ErrorIsBelowRoundToNearest) {
  const Matrix w = Gaussian(140, 192, 1);
  const Matrix m = CorrelatedMoment(192, 2);
  for (const Recipe& recipe : Formats()) {
    for (const TransformKind kind : kTransforms) {
      for (const BlockOrder order : kOrders) {
        GptqProblem problem = Problem(w, m);
        problem.transform = kind;
        problem.order = order;
        problem.block_size = recipe.transform_block_size;
        const GptqSolution solution = Solve(recipe, problem);
        EXPECT_LT(Error(w, solution.quantized, m), Error(w, RoundToNearest(recipe, problem, m), m))
            << Describe(recipe, kind, order);
        EXPECT_EQ(solution.retries, 0);
      }
    }
  }
}

// What is stored decodes to exactly what the error was measured on.
TEST_F(GptqOpTest, EncodedMatrixDecodesToDecoded) {
  const Matrix w = Gaussian(70, 192, 3);
  const Matrix m = CorrelatedMoment(192, 4);
  for (const Recipe& recipe : Formats()) {
    for (const TransformKind kind : kTransforms) {
      GptqProblem problem = Problem(w, m);
      problem.transform = kind;
      problem.block_size = recipe.transform_block_size;
      const GptqSolution solution = Solve(recipe, problem);
      Matrix decoded(w.rows(), w.cols());
      const absl::Status status =
          DecodeMatrix(*NumberFormat::Create(recipe, w.cols()), Encoded(solution.quantized),
                       absl::MakeSpan(decoded.data(), decoded.size()));
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(decoded, Download(solution.quantized.decoded))
          << Describe(recipe, kind, problem.order);
    }
  }
}

TEST_F(GptqOpTest, DiagonalMomentIsRoundToNearest) {
  const Matrix w = Gaussian(70, 192, 5);
  Matrix m = Matrix::Zero(192, 192);
  for (int64_t c = 0; c < 192; ++c) m(c, c) = std::exp(Gaussian(1, 1, c)(0, 0));
  for (const Recipe& recipe : Formats()) {
    for (const BlockOrder order : kOrders) {
      for (const bool act_order : {false, true}) {
        GptqProblem problem = Problem(w, m);
        problem.order = order;
        problem.act_order = act_order;
        const GptqSolution solution = Solve(recipe, problem);
        const QuantizedWeight rtn = RoundToNearest(recipe, problem, m);
        const std::string what = Describe(recipe, TransformKind::kIdentity, order);
        EXPECT_EQ(Download(solution.quantized.decoded), Download(rtn.decoded)) << what;
        EXPECT_THAT(Encoded(solution.quantized).scales.bytes(),
                    testing::ElementsAreArray(Encoded(rtn).scales.bytes()))
            << what;
        EXPECT_EQ(solution.quantized.global_scale, rtn.global_scale) << what;
        if (order == BlockOrder::kDescending) continue;  // writes zeros as -0
        EXPECT_THAT(Encoded(solution.quantized).codes.bytes(),
                    testing::ElementsAreArray(Encoded(rtn).codes.bytes()))
            << what;
      }
    }
  }
}

// Frantar et al. 2022, column by column with the inverse of what is left.
Matrix Textbook(const NumberFormat& format, Matrix w, Matrix m, double damping) {
  const int64_t cols = w.cols();
  m.diagonal().array() += damping * m.trace() / static_cast<double>(cols);
  const int64_t group = format.grid().cols;
  Matrix decoded(w.rows(), cols);
  std::vector<double> scales(w.rows());
  for (int64_t c = 0; c < cols; ++c) {
    if (c % group == 0) {
      for (int64_t r = 0; r < w.rows(); ++r) {
        const Matrix own = w.block(r, c, 1, group);
        format.ComputeScales(own.data(), 1, group, format.GlobalScale(1.0), &scales[r]);
      }
    }
    const Matrix inverse = m.bottomRightCorner(cols - c, cols - c).inverse();
    for (int64_t r = 0; r < w.rows(); ++r) {
      uint8_t code;
      format.Round(&w(r, c), 1, scales[r], &code);
      format.Decode(&code, 1, scales[r], &decoded(r, c));
      const double error = (w(r, c) - decoded(r, c)) / inverse(0, 0);
      w.row(r).tail(cols - c) -= error * inverse.row(0);
    }
  }
  return decoded;
}

TEST_F(GptqOpTest, AscendingIsTheTextbookRecursion) {
  const Matrix w = Gaussian(20, 128, 6);
  const Matrix m = CorrelatedMoment(128, 7);
  for (const Format name : {Format::kMxfp4, Format::kInt4}) {
    const Recipe recipe = ResolveRecipe({.format = name}).value();
    const auto format = NumberFormat::Create(recipe, w.cols());
    const Matrix got = Download(Solve(*format, Problem(w, m)).quantized.decoded);
    EXPECT_TRUE(got.isApprox(Textbook(*format, w, m, 1e-2), 1e-12)) << NameOf(name);
  }
}

// In the transformed space a data-free transform is plain GPTQ on the transformed layer.
TEST_F(GptqOpTest, TransformEqualsPlainGptqOfTheTransformedLayer) {
  const Matrix w = Gaussian(20, 128, 8);
  const Matrix m = CorrelatedMoment(128, 9);
  const Recipe recipe = ResolveRecipe({.format = Format::kMxfp4}).value();
  GptqProblem problem = Problem(w, m);
  problem.transform = TransformKind::kHadamard;
  const GptqSolution got = Solve(recipe, problem);
  const Tensor stack = backend_->Download(*stream_, got.transform.transform.tw).value();
  Matrix t = Matrix::Zero(128, 128);
  for (int64_t b = 0; b < 4; ++b) {
    t.block(b * 32, b * 32, 32, 32) =
        Eigen::Map<const Matrix>(stack.as<double>().data() + b * 1024, 32, 32);
  }
  const Matrix want =
      Download(Solve(recipe, Problem(w * t.transpose(), t * m * t.transpose())).quantized.decoded);
  EXPECT_TRUE(Download(got.quantized.decoded).isApprox(want, 1e-6));
}

TEST_F(GptqOpTest, ThreadsLeaveNoTrace) {
  const Matrix w = Gaussian(200, 192, 10);
  const Matrix m = CorrelatedMoment(192, 11);
  for (const Recipe& recipe : Formats()) {
    for (const TransformKind kind : {TransformKind::kIdentity, TransformKind::kWush}) {
      std::vector<std::vector<std::byte>> codes;
      std::vector<Matrix> dequantized;
      for (const int threads : {1, 2, 5}) {
        const auto backend = NewCpuBackend(threads);
        const auto stream = backend->NewStream(nullptr).value();
        const auto format = NumberFormat::Create(recipe, w.cols());
        auto solved =
            backend->SolveGptq(*stream, *format,
                               {.transform = kind,
                                .block_size = recipe.transform_block_size,
                                .weight = backend->Upload(*stream, ToTensor(w)).value(),
                                .second_moment = backend->Upload(*stream, ToTensor(m)).value()});
        ASSERT_TRUE(solved.ok()) << solved.status();
        const Tensor packed = backend->Download(*stream, solved->quantized.codes).value();
        const auto bytes = packed.bytes();
        codes.emplace_back(bytes.begin(), bytes.end());
        dequantized.push_back(Download(solved->quantized.dequantized));
      }
      EXPECT_EQ(codes[0], codes[1]);
      EXPECT_EQ(codes[0], codes[2]);
      EXPECT_EQ(dequantized[0], dequantized[2]);
    }
  }
}

TEST_F(GptqOpTest, ActOrderWithEqualDiagonalsIsThePlainOrder) {
  const Matrix w = Gaussian(40, 128, 12);
  Matrix m = CorrelatedMoment(128, 13);
  const Eigen::VectorXd root = m.diagonal().cwiseSqrt().cwiseInverse();
  m = root.asDiagonal() * m * root.asDiagonal();
  m.diagonal().setOnes();
  for (const Recipe& recipe : Formats()) {
    if (w.cols() % std::max<int64_t>(recipe.group_size, 1) != 0) continue;
    for (const TransformKind kind : {TransformKind::kIdentity, TransformKind::kWush}) {
      for (const BlockOrder order : kOrders) {
        GptqProblem problem = Problem(w, m);
        problem.transform = kind;
        problem.order = order;
        problem.block_size = recipe.transform_block_size;
        const Matrix plain = Download(Solve(recipe, problem).quantized.dequantized);
        problem.act_order = true;
        EXPECT_EQ(plain, Download(Solve(recipe, problem).quantized.dequantized))
            << Describe(recipe, kind, order);
      }
    }
  }
}

// Inputs of large energy first: what they lose is made up for by the small ones.
TEST_F(GptqOpTest, ActOrderHelpsWhereEnergyGrowsTowardsTheLastInputs) {
  const Matrix w = Gaussian(60, 128, 14);
  Matrix m = CorrelatedMoment(128, 15);
  Eigen::VectorXd gain(128);
  for (int64_t c = 0; c < 128; ++c) gain[c] = std::exp(0.02 * static_cast<double>(c));
  m = gain.asDiagonal() * m * gain.asDiagonal();
  const Recipe recipe = ResolveRecipe({.format = Format::kInt4}).value();
  GptqProblem problem = Problem(w, m);
  const double plain = Error(w, Solve(recipe, problem).quantized, m);
  problem.act_order = true;
  EXPECT_LT(Error(w, Solve(recipe, problem).quantized, m), plain);
}

TEST_F(GptqOpTest, AsymmetricWithoutDriftIsGptq) {
  const Matrix w = Gaussian(40, 128, 16);
  const Matrix m = CorrelatedMoment(128, 17);
  const Recipe recipe = ResolveRecipe({.format = Format::kMxfp4}).value();
  for (const TransformKind kind : kTransforms) {
    GptqProblem problem = Problem(w, m);
    problem.transform = kind;
    const Matrix plain = Download(Solve(recipe, problem).quantized.dequantized);
    problem.cross_moment = problem.second_moment;
    EXPECT_EQ(plain, Download(Solve(recipe, problem).quantized.dequantized));
  }
}

TEST_F(GptqOpTest, AsymmetricTermLowersTheErrorOfDriftedInputs) {
  const int64_t cols = 128;
  const Matrix w = Gaussian(60, cols, 18);
  const Matrix x =
      Gaussian(600, cols, 19) * (Gaussian(cols, cols, 20) / 11.0 + Matrix::Identity(cols, cols));
  const Matrix xhat = x + 0.2 * Gaussian(600, cols, 21) + 0.1 * x * Gaussian(cols, cols, 22) / 11.0;
  const Matrix hat = xhat.transpose() * xhat / 600.0;
  const Matrix cross = x.transpose() * xhat / 600.0;
  const Recipe recipe = ResolveRecipe({.format = Format::kMxfp4}).value();
  const auto loss = [&](const QuantizedWeight& q) {
    return (x * w.transpose() - xhat * Download(q.dequantized).transpose()).squaredNorm();
  };
  for (const TransformKind kind : kTransforms) {
    for (const BlockOrder order : kOrders) {
      GptqProblem problem = Problem(w, hat);
      problem.transform = kind;
      problem.order = order;
      const double plain = loss(Solve(recipe, problem).quantized);
      problem.cross_moment = Upload(cross);
      EXPECT_LT(loss(Solve(recipe, problem).quantized), 0.9 * plain) << NameOf(kind);
    }
  }
}

TEST_F(GptqOpTest, DeadInputsNeitherGiveNorTakeFeedback) {
  Matrix m = CorrelatedMoment(64, 23);
  for (const int64_t dead : {0, 5, 63}) {
    m.row(dead).setZero();
    m.col(dead).setZero();
  }
  const Matrix w = Gaussian(30, 64, 24);
  const Recipe recipe = ResolveRecipe({.format = Format::kInt4}).value();
  GptqProblem problem = Problem(w, m);
  problem.damping = 0.0;  // which alone would leave M singular
  const GptqSolution solution = Solve(recipe, problem);
  EXPECT_EQ(solution.retries, 0);
  EXPECT_EQ(solution.damping, 0.0);
  // Column 0 comes first and is not repaired: it is rounded to nearest, within half a step.
  const Matrix d = w - Download(solution.quantized.dequantized);
  const Matrix rtn = w - Download(RoundToNearest(recipe, problem, m).dequantized);
  EXPECT_EQ(d.col(0), rtn.col(0));
}

TEST_F(GptqOpTest, SingularMomentsAreDampedAndReported) {
  const Matrix w = Gaussian(30, 64, 25);
  const Recipe recipe = ResolveRecipe({.format = Format::kMxfp4}).value();
  const Matrix few = Gaussian(10, 64, 26);
  for (const Matrix& m : {Matrix(few.transpose() * few / 10.0), Matrix(Matrix::Ones(64, 64))}) {
    for (const TransformKind kind : kTransforms) {
      GptqProblem problem = Problem(w, m);
      problem.transform = kind;
      EXPECT_EQ(Solve(recipe, problem).retries, 0);
      problem.damping = 0.0;
      const GptqSolution solution = Solve(recipe, problem);
      EXPECT_GE(solution.retries, 1);
      EXPECT_GT(solution.damping, 0.0);
      EXPECT_TRUE(Download(solution.quantized.dequantized).allFinite());
    }
  }
}

TEST_F(GptqOpTest, ZeroLayersWork) {
  const Matrix zero_w = Matrix::Zero(20, 64);
  const Matrix zero_m = Matrix::Zero(64, 64);
  for (const Recipe& recipe : Formats()) {
    if (64 % std::max<int64_t>(recipe.group_size, 1) != 0) continue;
    for (const TransformKind kind : kTransforms) {
      for (const Solver solver : {Solver::kMarginal, Solver::kConditional}) {
        for (const bool zero_weight : {false, true}) {
          GptqProblem problem = Problem(zero_weight ? zero_w : Gaussian(20, 64, 27), zero_m);
          problem.transform = kind;
          problem.solver = solver;
          problem.block_size = recipe.transform_block_size;
          const Matrix got = Download(Solve(recipe, problem).quantized.dequantized);
          EXPECT_TRUE(got.allFinite()) << Describe(recipe, kind, problem.order);
          if (zero_weight) {
            EXPECT_LT(got.norm(), 1e-6);
          }
        }
      }
    }
  }
}

TEST_F(GptqOpTest, RefusesMomentsThatAreNone) {
  const Recipe recipe = ResolveRecipe({.format = Format::kMxfp4}).value();
  const auto format = NumberFormat::Create(recipe, 64);
  const auto status = [&](const Matrix& m) {
    return backend_->SolveGptq(*stream_, *format, Problem(Gaussian(8, 64, 28), m)).status();
  };
  Matrix lopsided = CorrelatedMoment(64, 29);
  lopsided(3, 7) += 1.0;
  EXPECT_EQ(status(lopsided).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status(lopsided).message()), HasSubstr("symmetric"));
  Matrix indefinite = CorrelatedMoment(64, 30);
  indefinite(3, 7) = indefinite(7, 3) = 50.0 * indefinite.diagonal().maxCoeff();
  EXPECT_EQ(status(indefinite).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status(indefinite).message()), HasSubstr("positive semidefinite"));
  Matrix negative = CorrelatedMoment(64, 30);
  negative(2, 2) = -1e-3;
  EXPECT_EQ(status(negative).code(), absl::StatusCode::kInvalidArgument);
  Matrix nan = CorrelatedMoment(64, 31);
  nan(5, 5) = std::nan("");
  EXPECT_EQ(status(nan).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status(CorrelatedMoment(32, 32)).message()),
              HasSubstr("second_moment: expected [64, 64]; got [32, 32]"));
  GptqProblem problem = Problem(Gaussian(8, 64, 33), CorrelatedMoment(64, 34));
  problem.cross_moment = Upload(CorrelatedMoment(32, 32));
  EXPECT_THAT(std::string(backend_->SolveGptq(*stream_, *format, problem).status().message()),
              HasSubstr("cross_moment: expected [64, 64]; got [32, 32]"));
}

TEST_F(GptqOpTest, Cancels) {
  CancelFlag cancel;
  const auto stream = backend_->NewStream(&cancel).value();
  const auto format = NumberFormat::Create(ResolveRecipe({}).value(), 64);
  const GptqProblem problem = Problem(Gaussian(8, 64, 35), CorrelatedMoment(64, 36));
  cancel.Cancel();
  EXPECT_TRUE(absl::IsCancelled(backend_->SolveGptq(*stream, *format, problem).status()));
}

// --- golden data -------------------------------------------------------------------------------

// NVFP4 with the constant divisor of the published code.
class ConstantGlobal final : public NumberFormat {
 public:
  explicit ConstantGlobal(std::unique_ptr<const NumberFormat> base) : base_(std::move(base)) {}
  FormatSpec spec() const override { return base_->spec(); }
  ScaleGrid grid() const override { return base_->grid(); }
  int element_bits() const override { return base_->element_bits(); }
  DType scale_dtype() const override { return base_->scale_dtype(); }
  DType packed_dtype() const override { return base_->packed_dtype(); }
  std::optional<int> element_mantissa_bits() const override {
    return base_->element_mantissa_bits();
  }
  int scale_mantissa_bits() const override { return base_->scale_mantissa_bits(); }
  std::optional<float> GlobalScale(double /*amax*/) const override { return 10.0f; }
  void ComputeScales(const double* values, int64_t rows, int64_t cols, std::optional<float> global,
                     double* scales) const override {
    base_->ComputeScales(values, rows, cols, global, scales);
  }
  void Round(const double* values, int64_t count, double scale, uint8_t* codes) const override {
    base_->Round(values, count, scale, codes);
  }
  void Decode(const uint8_t* codes, int64_t count, double scale, double* values) const override {
    base_->Decode(codes, count, scale, values);
  }
  void PackScales(absl::Span<const double> scales, std::optional<float> global,
                  std::byte* packed) const override {
    base_->PackScales(scales, global, packed);
  }
  void UnpackScales(const std::byte* packed, std::optional<float> global,
                    absl::Span<double> scales) const override {
    base_->UnpackScales(packed, global, scales);
  }

 private:
  const std::unique_ptr<const NumberFormat> base_;
};

class GptqGoldenTest : public GptqOpTest {
 protected:
  static const SafetensorsFile& File() {
    static const auto* file = new SafetensorsFile(
        SafetensorsFile::Open(QUANTD_GOLDEN_DIR "/wush_golden.safetensors").value());
    return *file;
  }
  static Tensor Golden(const std::string& name) { return File().Read(name).value(); }

  static std::unique_ptr<const NumberFormat> PublishedFormat(Format format, int64_t cols) {
    if (format == Format::kMxfp4) {
      return NumberFormat::Create(ResolveRecipe({.format = format}).value(), cols);
    }
    return std::make_unique<ConstantGlobal>(NumberFormat::Create(
        ResolveRecipe({.format = format, .scale_rule = ScaleRule::kAmax}).value(), cols));
  }
  static double EqualShare(absl::Span<const std::byte> a, absl::Span<const std::byte> b, int bits) {
    EXPECT_EQ(a.size(), b.size());
    int64_t equal = 0;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      const auto differs = static_cast<int>(a[i] ^ b[i]);
      if (bits == 8) equal += differs == 0 ? 1 : 0;
      if (bits == 4) equal += ((differs & 15) == 0 ? 1 : 0) + ((differs >> 4) == 0 ? 1 : 0);
    }
    return static_cast<double>(equal) / static_cast<double>(a.size() * (bits == 4 ? 2 : 1));
  }
  GptqProblem Published(const std::string& name) {
    return {.solver = Solver::kConditional,
            .order = BlockOrder::kDescending,
            .weight = backend_->Upload(*stream_, Golden(name + "/weight")).value(),
            .second_moment = backend_->Upload(*stream_, Golden(name + "/second_moment")).value()};
  }
};

TEST_F(GptqGoldenTest, CodesGivenTheGoldenTransforms) {
  for (const std::string name : {"outlier_64x128", "gauss_48x64", "rect_40x256"}) {
    for (const Format format : {Format::kMxfp4, Format::kNvfp4}) {
      for (const std::string kind : {"identity", "hadamard", "wus", "wush"}) {
        const std::string key = absl::StrCat(name, "/", NameOf(format), ".", kind, ".gptq");
        GptqProblem problem = Published(name);
        const Tensor transform = Golden(key + ".transform");
        problem.given_transform = &transform;
        problem.block_size = transform.dim(1);
        const GptqSolution solution =
            Solve(*PublishedFormat(format, problem.weight.dim(1)), problem);
        const EncodedMatrix encoded = Encoded(solution.quantized);
        EXPECT_GE(EqualShare(encoded.codes.bytes(), Golden(key + ".codes").bytes(), 4), 0.995)
            << key;
        EXPECT_GE(EqualShare(encoded.scales.bytes(), Golden(key + ".scales").bytes(), 8), 0.995)
            << key;
      }
    }
  }
}

// Without the Hadamard matrix the free signs of singular vectors only change signs of codes, so the
// whole run reproduces the golden one.
TEST_F(GptqGoldenTest, ConditionalSolverReproducesTheGrams) {
  for (const std::string name : {"outlier_64x128", "gauss_48x64", "rect_40x256"}) {
    for (const Format format : {Format::kMxfp4, Format::kNvfp4}) {
      const std::string key = name + "/" + std::string(NameOf(format)) + ".wus.gptq";
      const Tensor golden = Golden(key + ".transform");
      GptqProblem problem = Published(name);
      problem.transform = TransformKind::kWus;
      problem.block_size = golden.dim(1);
      const GptqSolution solution = Solve(*PublishedFormat(format, problem.weight.dim(1)), problem);
      const Tensor got = backend_->Download(*stream_, solution.transform.transform.tx).value();
      const int64_t b = golden.dim(1);
      using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
      for (int64_t i = 0; i < golden.dim(0); ++i) {
        const Matrix want =
            Eigen::Map<const Floats>(golden.as<float>().data() + i * b * b, b, b).cast<double>();
        const Matrix ours =
            Eigen::Map<const Floats>(got.as<float>().data() + i * b * b, b, b).cast<double>();
        const Matrix gram = want.transpose() * want;
        EXPECT_LE((ours.transpose() * ours - gram).norm(), 1e-6 * gram.norm()) << key << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace quantd::compute
