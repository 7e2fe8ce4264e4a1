// WaterSIC's ops on the CPU backend: the golden data, plain loops, any number of threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "compute/backend/cpu/cholesky.h"
#include "compute/backend/cpu/cpu_backend.h"
#include "compute/backend/cpu/successive_cancellation.h"
#include "compute/formats/safetensors.h"
#include "tests/compute/normal_values.h"

namespace quantd::compute {
namespace {

using testing::DoubleNear;
using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::Pointwise;

using Matrix = std::vector<double>;

// X^T X / n + added I for n = 2 cols rows whose columns have very different scales.
Matrix Moment(int64_t cols, int seed, double added = 0.0) {
  const Matrix x = NormalValues(2 * cols * cols, seed);
  Matrix m(cols * cols);
  for (int64_t t = 0; t < 2 * cols; ++t) {
    for (int64_t i = 0; i < cols; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        m[i * cols + j] += x[t * cols + i] * x[t * cols + j] * std::exp2((i % 5) + (j % 5)) /
                           static_cast<double>(2 * cols);
      }
    }
  }
  for (int64_t i = 0; i < cols; ++i) m[i * cols + i] += added;
  return m;
}

double MeanDiagonal(const Matrix& m, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += m[i * n + i];
  return sum / static_cast<double>(n);
}

Tensor MakeTensor(std::vector<int64_t> shape, const Matrix& values) {
  return Tensor::FromBytes(DType::kF64, std::move(shape),
                           absl::MakeConstSpan(reinterpret_cast<const std::byte*>(values.data()),
                                               values.size() * sizeof(double)))
      .value();
}

TEST(CholeskyTest, ProductOfTheFactorIsTheMatrixForAnySizeAndThreads) {
  WorkerPool one(1);
  WorkerPool three(3);
  for (const int64_t n : {1, 5, 96, 97, 300}) {
    const Matrix m = Moment(n, 3, 0.01);
    Matrix lower = m;
    ASSERT_TRUE(FactorCholesky(one, n, lower.data()));
    Matrix again = m;
    ASSERT_TRUE(FactorCholesky(three, n, again.data()));
    EXPECT_EQ(lower, again);
    double worst = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        const double product = std::inner_product(lower.begin() + i * n, lower.begin() + i * n + n,
                                                  lower.begin() + j * n, 0.0);
        worst = std::max(worst, std::abs(product - m[i * n + j]));
      }
    }
    EXPECT_LE(worst, 1e-13 * n * MeanDiagonal(m, n));
  }
}

TEST(CholeskyTest, IndefiniteIsRefusedWhereverThePivotFails) {
  WorkerPool pool(2);
  for (const int64_t bad : {0, 50, 199}) {
    Matrix m = Moment(200, 4, 0.01);
    m[bad * 200 + bad] = -1.0;
    EXPECT_FALSE(FactorCholesky(pool, 200, m.data()));
  }
  Matrix nan(4, std::nan(""));
  EXPECT_FALSE(FactorCholesky(pool, 2, nan.data()));
}

// The formula, column by column.
struct PlainCancellation {
  std::vector<int32_t> codes;
  Matrix gamma;
  PlainCancellation(int64_t rows, int64_t cols, const Matrix& lower, double c, Matrix y)
      : codes(rows * cols), gamma(cols) {
    for (int64_t i = cols - 1; i >= 0; --i) {
      double product = 0.0;
      double energy = 0.0;
      for (int64_t r = 0; r < rows; ++r) {
        const double z = std::nearbyint(y[i * rows + r] / c);
        codes[i * rows + r] = static_cast<int32_t>(z);
        product += z * y[i * rows + r];
        energy += z * z;
      }
      gamma[i] = energy > 0.0 ? product / (c * energy) : 0.0;
      for (int64_t j = 0; j < i; ++j) {
        const double step = gamma[i] * c / lower[i * cols + i] * lower[i * cols + j];
        for (int64_t r = 0; r < rows; ++r) y[j * rows + r] -= step * codes[i * rows + r];
      }
    }
  }
};

// Blocked sums round differently in the last bits, so a code may differ where a target lies within
// 1e-12 spacings of a tie: none of 40,000 here, and gamma agrees to 1e-12.
TEST(SuccessiveCancellationTest, AgreesWithTheColumnByColumnFormula) {
  WorkerPool pool(2);
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {7, 24}, {9, 25}, {300, 130}, {600, 49}}) {
    Matrix lower = Moment(cols, 6, 0.1);
    ASSERT_TRUE(FactorCholesky(pool, cols, lower.data()));
    for (const double c : {0.05, 0.7, 4.0}) {
      Matrix y = NormalValues(rows * cols, 7);
      const PlainCancellation want(rows, cols, lower, c, y);
      std::vector<int32_t> codes(rows * cols);
      Matrix gamma(cols);
      ASSERT_TRUE(CancelSuccessively(pool, rows, cols, lower.data(), c, y.data(), codes.data(),
                                     gamma.data()));
      EXPECT_EQ(codes, want.codes) << rows << "x" << cols << " c=" << c;
      EXPECT_THAT(gamma, Pointwise(DoubleNear(1e-12), want.gamma));
    }
  }
}

TEST(SuccessiveCancellationTest, TheSameBitsOnAnyNumberOfThreads) {
  constexpr int64_t kRows = 700;
  constexpr int64_t kCols = 200;
  WorkerPool one(1);
  Matrix lower = Moment(kCols, 8, 0.1);
  ASSERT_TRUE(FactorCholesky(one, kCols, lower.data()));
  std::vector<Matrix> left;
  for (const int threads : {1, 2, 5}) {
    WorkerPool pool(threads);
    Matrix y = NormalValues(kRows * kCols, 9);
    std::vector<int32_t> codes(kRows * kCols);
    Matrix gamma(kCols);
    ASSERT_TRUE(CancelSuccessively(pool, kRows, kCols, lower.data(), 0.3, y.data(), codes.data(),
                                   gamma.data()));
    left.push_back(y);
  }
  EXPECT_EQ(left[0], left[1]);
  EXPECT_EQ(left[0], left[2]);
}

TEST(SuccessiveCancellationTest, CodesThatDoNotFitAreRefused) {
  WorkerPool pool(1);
  const Matrix lower = {1.0};
  Matrix y = {1e9, -3.0};
  std::vector<int32_t> codes(2);
  double gamma = 0.0;
  EXPECT_TRUE(CancelSuccessively(pool, 2, 1, lower.data(), 1.0, y.data(), codes.data(), &gamma));
  y = {3.0, -1e9};
  EXPECT_FALSE(CancelSuccessively(pool, 2, 1, lower.data(), 0.5, y.data(), codes.data(), &gamma));
}

// --- golden data -------------------------------------------------------------------------------

const SafetensorsFile& File() {
  static const auto* file = new SafetensorsFile(
      SafetensorsFile::Open(QUANTD_GOLDEN_DIR "/watersic_golden.safetensors").value());
  return *file;
}

const nlohmann::json& Spec() {
  static const auto* spec =
      new nlohmann::json(nlohmann::json::parse(File().header().metadata.at("spec")));
  return *spec;
}

std::vector<std::string> CaseNames() {
  std::vector<std::string> names;
  for (const auto& [name, facts] : Spec().items()) names.push_back(name);
  return names;
}

double Entropy(const Tensor& codes) {
  std::map<int32_t, int64_t> counts;
  for (const int32_t z : codes.as<int32_t>()) ++counts[z];
  double bits = 0.0;
  for (const auto& [z, count] : counts) {
    const double share = static_cast<double>(count) / static_cast<double>(codes.elements());
    bits -= share * std::log2(share);
  }
  return bits;
}

class WaterSicGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  bool Has(const std::string& name) const { return File().Read(GetParam() + "/" + name).ok(); }
  Tensor Golden(const std::string& name) const {
    return File().Read(GetParam() + "/" + name).value();
  }
  Matrix Values(const std::string& name) const {
    const Tensor host = Golden(name);
    return {host.as<double>().begin(), host.as<double>().end()};
  }
  DeviceTensor Upload(const std::string& name) {
    return backend_->Upload(*stream_, Golden(name)).value();
  }
  // Without the dead columns.
  DeviceTensor Live(const std::string& name, bool square) {
    if (!Has(name)) return {};
    return backend_
        ->Submatrix(*stream_, Upload(name), square ? live_ : std::vector<int64_t>(), live_)
        .value();
  }
  void SetUp() override {
    const std::vector<int64_t> dead = Spec().at(GetParam()).at("dead");
    const int64_t cols = Spec().at(GetParam()).at("cols");
    for (int64_t c = 0; c < cols; ++c) {
      if (std::find(dead.begin(), dead.end(), c) == dead.end()) live_.push_back(c);
    }
    inputs_ = {.weight = Live("weight", false),
               .moment = Live("second_moment", true),
               .factor = {},
               .moment_hat = Live("second_moment_hat", true),
               .cross = Live("cross_moment", true),
               .residual = Live("residual_moment", false)};
    const DeviceTensor& factored = inputs_.moment_hat.empty() ? inputs_.moment : inputs_.moment_hat;
    const Tensor host = backend_->Download(*stream_, factored).value();
    const Matrix m(host.as<double>().begin(), host.as<double>().end());
    const double added = 1e-4 * MeanDiagonal(m, host.dim(0));
    inputs_.factor = backend_->FactorMoment(*stream_, factored, added).value();
  }

  const std::unique_ptr<Backend> backend_ = NewCpuBackend(2);
  const std::unique_ptr<Stream> stream_ = backend_->NewStream(nullptr).value();
  std::vector<int64_t> live_;
  LatticeInputs inputs_;
};

TEST_P(WaterSicGoldenTest, CodesScalesAndLoss) {
  const nlohmann::json& spec = Spec().at(GetParam());
  const LatticeProblem problem = backend_->PrepareLattice(*stream_, inputs_).value();

  const Matrix golden_spacing = Values("spacing");
  const double c = golden_spacing[0] * inputs_.factor.diagonal[0];
  Matrix spacing;
  for (const double l : inputs_.factor.diagonal) spacing.push_back(c / l);
  EXPECT_THAT(spacing, Pointwise(testing::DoubleNear(1e-10 * golden_spacing[0]), golden_spacing));

  const LatticeCodes codes =
      backend_->CancelSuccessively(*stream_, inputs_.factor, problem.target, c).value();
  const Tensor z = backend_->Download(*stream_, codes.codes).value();
  const Tensor golden_codes = Golden("codes");
  const int64_t rows = golden_codes.dim(0);
  const int64_t cols = golden_codes.dim(1);
  int64_t equal = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < cols; ++i) {
      equal += z.as<int32_t>()[i * rows + r] == golden_codes.as<int32_t>()[r * cols + i] ? 1 : 0;
    }
  }
  EXPECT_EQ(equal, rows * cols);
  EXPECT_NEAR(Entropy(z), spec.at("entropy_bits"), 1e-5);

  const LatticeScales scales =
      backend_->FitLatticeScales(*stream_, problem, codes, spacing).value();
  EXPECT_THAT(scales.row, Pointwise(DoubleNear(1e-6), Values("row_scale")));
  const Matrix golden_factor = Values("col_scale");
  for (size_t i = 0; i < golden_factor.size(); ++i) {
    EXPECT_NEAR(scales.column[i] / spacing[i], golden_factor[i], 1e-6);
  }

  const DeviceTensor decoded =
      backend_
          ->DecodeLattice(*stream_, codes.codes, scales.row, scales.column, live_, spec.at("cols"))
          .value();
  const Tensor host = backend_->Download(*stream_, decoded).value();
  const Matrix want = Values("reconstructed");
  EXPECT_THAT(host.as<double>(), Pointwise(DoubleNear(1e-6), want));

  // The golden loss leaves the residual out.
  const DeviceTensor dequantized = backend_->Submatrix(*stream_, decoded, {}, live_).value();
  const DeviceTensor& hat = inputs_.moment_hat.empty() ? inputs_.moment : inputs_.moment_hat;
  const DeviceTensor& cross = inputs_.cross.empty() ? inputs_.moment : inputs_.cross;
  const OutputError error =
      backend_->MeasureDriftError(*stream_, inputs_.weight, dequantized, inputs_.moment, hat, cross)
          .value();
  const double loss = spec.at("loss");
  EXPECT_NEAR(error.error / static_cast<double>(rows * cols), loss, 1e-6 * loss);
  EXPECT_NEAR(error.energy, problem.energy, 1e-12 * problem.energy);
  if (inputs_.residual.empty()) {
    EXPECT_NEAR(scales.loss, error.error, 1e-8 * error.error);
  }
}

TEST_P(WaterSicGoldenTest, RowScalesOfTheFinalColumnsAreTheFixedPoint) {
  const LatticeProblem problem = backend_->PrepareLattice(*stream_, inputs_).value();
  const double c = Values("spacing")[0] * inputs_.factor.diagonal[0];
  Matrix column = Values("spacing");
  const Matrix factor = Values("col_scale");
  for (size_t i = 0; i < column.size(); ++i) column[i] *= factor[i];
  const LatticeCodes codes =
      backend_->CancelSuccessively(*stream_, inputs_.factor, problem.target, c).value();
  const std::vector<double> row =
      backend_->FitRowScales(*stream_, problem, codes.codes, column).value();
  EXPECT_THAT(row, Pointwise(DoubleNear(1e-9), Values("row_scale")));
}

INSTANTIATE_TEST_SUITE_P(Cases, WaterSicGoldenTest, testing::ValuesIn(CaseNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

// --- errors ------------------------------------------------------------------------------------

class LatticeErrorTest : public testing::Test {
 protected:
  DeviceTensor Upload(std::vector<int64_t> shape, const Matrix& values) {
    return backend_->Upload(*stream_, MakeTensor(std::move(shape), values)).value();
  }
  const std::unique_ptr<Backend> backend_ = NewCpuBackend(1);
  const std::unique_ptr<Stream> stream_ = backend_->NewStream(nullptr).value();
};

TEST_F(LatticeErrorTest, IndefiniteMomentIsAPreconditionThatFails) {
  const DeviceTensor moment = Upload({2, 2}, {1, 2, 2, 1});
  const absl::Status status = backend_->FactorMoment(*stream_, moment, 0.5).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("0.5"));
  EXPECT_TRUE(backend_->FactorMoment(*stream_, moment, 1.5).ok());
}

TEST_F(LatticeErrorTest, AsymmetricMomentIsRefused) {
  const absl::Status status =
      backend_->FactorMoment(*stream_, Upload({2, 2}, {1, 0.5, 0.4, 1}), 0.1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("0.4 at (1, 0) and 0.5 across"));
  EXPECT_TRUE(backend_->FactorMoment(*stream_, Upload({2, 2}, {1, 0.5, 0.5 + 1e-9, 1}), 0.1).ok());
}

TEST_F(LatticeErrorTest, ShapesThatDoNotFitAreNamed) {
  const DeviceTensor weight = Upload({3, 2}, NormalValues(6, 1));
  const DeviceTensor moment = Upload({2, 2}, {1, 0, 0, 1});
  const MomentFactor factor = backend_->FactorMoment(*stream_, moment, 0.0).value();
  const auto message = [&](const LatticeInputs& inputs) {
    return std::string(backend_->PrepareLattice(*stream_, inputs).status().message());
  };
  const LatticeInputs good = {.weight = weight,
                              .moment = moment,
                              .factor = factor,
                              .moment_hat = {},
                              .cross = {},
                              .residual = {}};
  EXPECT_EQ(message(good), "");
  LatticeInputs inputs = good;
  inputs.moment = weight;
  EXPECT_THAT(message(inputs), HasSubstr("second_moment: expected [2, 2]; got [3, 2]"));
  inputs = good;
  inputs.cross = weight;
  EXPECT_THAT(message(inputs), HasSubstr("cross_moment"));
  inputs = good;
  inputs.moment_hat = weight;
  EXPECT_THAT(message(inputs), HasSubstr("second_moment_hat"));
  inputs = good;
  inputs.residual = moment;
  EXPECT_THAT(message(inputs), HasSubstr("residual_moment: expected [3, 2]; got [2, 2]"));
  EXPECT_THAT(backend_->Submatrix(*stream_, weight, {}, {2}).status().message(),
              HasSubstr("columns: expected indices in [0, 2); got 2"));
}

TEST_F(LatticeErrorTest, SpacingsThatCannotBeAreRefused) {
  const MomentFactor factor = backend_->FactorMoment(*stream_, Upload({1, 1}, {1}), 0.0).value();
  const DeviceTensor target = Upload({1, 2}, {1, -2});
  for (const double spacing : {0.0, -1.0, 1e-310, std::nan("")}) {
    EXPECT_EQ(backend_->CancelSuccessively(*stream_, factor, target, spacing).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(backend_->CancelSuccessively(*stream_, factor, target, 1e-12).status().code(),
            absl::StatusCode::kOutOfRange);
}

TEST_F(LatticeErrorTest, CodesAreCountedAndEncodedByLayer) {
  constexpr int64_t kRows = 70;
  constexpr int64_t kCols = 40;
  const MomentFactor factor =
      backend_->FactorMoment(*stream_, Upload({kCols, kCols}, Moment(kCols, 3, 1.0)), 0.0).value();
  const DeviceTensor codes =
      backend_
          ->CancelSuccessively(*stream_, factor,
                               Upload({kCols, kRows}, NormalValues(kCols * kRows, 4)), 0.1)
          .value()
          .codes;
  const Tensor host = backend_->Download(*stream_, codes).value();
  constexpr int64_t kFirst = 20;
  std::vector<int32_t> rows;
  for (int64_t r = kFirst; r < kRows; ++r) {
    for (int64_t c = 0; c < kCols; ++c) rows.push_back(host.as<int32_t>()[c * kRows + r]);
  }
  const CodeCounts want = CountTokens(rows, kCols);
  const CodeCounts got = backend_->CountCodes(*stream_, codes, kFirst, kRows - kFirst).value();
  EXPECT_EQ(got.values, want.values);
  EXPECT_EQ(got.bin_of_column, want.bin_of_column);
  EXPECT_EQ(got.of_bin, want.of_bin);
  EXPECT_THAT(got.large, testing::UnorderedElementsAreArray(want.large));
  const CodedIntegers coded =
      backend_->EncodeCodes(*stream_, codes, kFirst, kRows - kFirst, ChooseModel(got)).value();
  EXPECT_EQ(DecodeIntegers(coded, kRows - kFirst, kCols).value(), rows);
  const Tensor decoded =
      backend_
          ->Download(*stream_,
                     backend_->DecodeCodes(*stream_, coded, kRows - kFirst, kCols).value())
          .value();
  EXPECT_THAT(decoded.as<int32_t>(), ElementsAreArray(rows));
  EXPECT_EQ(backend_->DecodeCodes(*stream_, coded, kRows, kCols).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_THAT(backend_->CountCodes(*stream_, codes, kFirst, kRows).status().message(),
              HasSubstr("codes: expected rows of 70; got [20, 90)"));
}

TEST_F(LatticeErrorTest, EnergiesAreMeanSquares) {
  const DeviceTensor matrix = Upload({2, 3}, {1, -2, 3, 0, 4, -5});
  EXPECT_THAT(backend_->RowEnergies(*stream_, matrix).value(),
              ElementsAreArray({14.0 / 3.0, 41.0 / 3.0}));
  EXPECT_THAT(backend_->ColumnEnergies(*stream_, matrix).value(),
              ElementsAreArray({0.5, 10.0, 17.0}));
}

TEST_F(LatticeErrorTest, DeadColumnsDecodeToZero) {
  const MomentFactor factor =
      backend_->FactorMoment(*stream_, Upload({2, 2}, {1, 0, 0, 1}), 0.0).value();
  const LatticeCodes made =
      backend_->CancelSuccessively(*stream_, factor, Upload({2, 3}, {1, -2, 3, 0, 5, -1}), 1.0)
          .value();
  const DeviceTensor decoded =
      backend_->DecodeLattice(*stream_, made.codes, {1, 2, 0.5}, {10, 100}, {0, 2}, 4).value();
  const Tensor host = backend_->Download(*stream_, decoded).value();
  EXPECT_THAT(host.as<double>(),
              ElementsAreArray({10., 0., 0., 0., -40., 0., 1000., 0., 15., 0., -50., 0.}));
}

}  // namespace
}  // namespace quantd::compute
