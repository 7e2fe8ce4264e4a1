// WaterSIC as a whole, on the CPU backend.
#include "compute/stages/watersic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "compute/backend/cpu/cpu_backend.h"
#include "compute/coding/integer_coder.h"
#include "compute/formats/lattice_weight.h"
#include "compute/stages/measure.h"
#include "compute/stages/rate_theory.h"
#include "tests/compute/normal_values.h"

namespace quantd::compute {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Matrix = std::vector<double>;

// A moment by its entries.
Matrix Square(int64_t n, const std::function<double(int64_t, int64_t)>& entry) {
  Matrix m(n * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) m[i * n + j] = entry(i, j);
  }
  return m;
}

// Tokens whose columns are correlated and, some of them, large: T x C.
Matrix Tokens(int64_t tokens, int64_t cols, int seed) {
  Matrix x = NormalValues(tokens * cols, seed);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 1; c < cols; ++c) x[t * cols + c] += 0.8 * x[t * cols + c - 1];
    for (int64_t c = 0; c < cols; c += 9) x[t * cols + c] *= 6.0;
  }
  return x;
}

// Mean of x^T y over tokens: cols x y_cols.
Matrix Moment(int64_t tokens, const Matrix& x, const Matrix& y) {
  const auto cols = static_cast<int64_t>(x.size()) / tokens;
  const auto y_cols = static_cast<int64_t>(y.size()) / tokens;
  Matrix m(cols * y_cols);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < cols; ++i) {
      for (int64_t j = 0; j < y_cols; ++j) {
        m[i * y_cols + j] += x[t * cols + i] * y[t * y_cols + j] / static_cast<double>(tokens);
      }
    }
  }
  return m;
}

class WaterSicTest : public testing::Test {
 protected:
  static constexpr int64_t kRows = 160;
  static constexpr int64_t kCols = 96;
  static constexpr int64_t kTokens = 400;

  explicit WaterSicTest(int threads = 2)
      : backend_(NewCpuBackend(threads)), stream_(backend_->NewStream(nullptr).value()) {
    SetLayer(kRows, kCols, NormalValues(kRows * kCols, 1), Moment(kTokens, x_, x_));
  }

  DeviceTensor Upload(int64_t rows, int64_t cols, const Matrix& values) {
    const Tensor tensor =
        Tensor::FromBytes(DType::kF64, {rows, cols},
                          absl::MakeConstSpan(reinterpret_cast<const std::byte*>(values.data()),
                                              values.size() * sizeof(double)))
            .value();
    return backend_->Upload(*stream_, tensor).value();
  }
  void SetLayer(int64_t rows, int64_t cols, const Matrix& weight, const Matrix& moment) {
    problem_ = LayerProblem();
    problem_.weight = Upload(rows, cols, weight);
    problem_.full_moment = Upload(cols, cols, moment);
    SetRate(3.0);
  }
  void SetRate(double bits) {
    problem_.recipe =
        ResolveRecipe(
            {.format = Format::kEntropyCoded, .method = Method::kWaterSic, .rate_bits = bits})
            .value();
  }
  absl::StatusOr<LayerSolution> TrySolve() {
    return WaterSicMethod().Solve(*backend_, *stream_, problem_, [](absl::string_view) {});
  }
  LayerSolution Solve() {
    absl::StatusOr<LayerSolution> solution = TrySolve();
    EXPECT_TRUE(solution.ok()) << solution.status();
    return *std::move(solution);
  }
  const LatticeWeight& Lattice(const LayerSolution& solution) {
    return dynamic_cast<const LatticeWeight&>(*solution.encoded);
  }
  // Bits a weight of what Pack stores for the given ranges of rows.
  double StoredBits(const LayerSolution& solution, const std::vector<int64_t>& layer_rows) {
    double bits = 0.0;
    int64_t first = 0;
    for (const int64_t rows : layer_rows) {
      const std::vector<NamedTensor> tensors = solution.encoded->Pack(first, rows).value();
      for (const NamedTensor& named : tensors) {
        bits += 8.0 * static_cast<double>(named.tensor.bytes().size());
      }
      first += rows;
    }
    return bits / static_cast<double>(first * problem_.weight.dim(1));
  }
  // tr(dW M dW^T) / (R C).
  double Distortion(const LayerSolution& solution) {
    const WeightError error =
        backend_
            ->MeasureWeightError(*stream_, problem_.weight, solution.dequantized,
                                 problem_.full_moment, ErrorDetail::kRows)
            .value();
    double sum = 0.0;
    for (const double row : error.by_row) sum += row;
    return sum / static_cast<double>(problem_.weight.dim(0) * problem_.weight.dim(1));
  }
  Matrix Values(const DeviceTensor& tensor) {
    const Tensor host = backend_->Download(*stream_, tensor).value();
    return {host.as<double>().begin(), host.as<double>().end()};
  }
  void ExpectRefused(absl::StatusCode code, const std::string& message) {
    const absl::Status status = TrySolve().status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(status.message(), HasSubstr(message));
  }

  const Matrix x_ = Tokens(kTokens, kCols, 2);
  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<Stream> stream_;
  LayerProblem problem_;
};

TEST_F(WaterSicTest, StoredRateMeetsTheRequest) {
  for (const double bits : {1.0, 2.0, 2.5, 3.0, 4.0, 6.0, 11.0}) {
    SetRate(bits);
    const LayerSolution solution = Solve();
    EXPECT_NEAR(StoredBits(solution, {kRows}), bits, 5e-3);
    EXPECT_EQ(solution.outcome, Outcome::kExact);
    EXPECT_EQ(solution.damping, kWaterSicDamping);
    EXPECT_EQ(solution.retries, 0);
  }
}

// Rows that are solved first tell where the search of a tall layer begins, also where the rows are
// of all sizes and the large ones lie together.
TEST_F(WaterSicTest, TallLayersMeetTheRequest) {
  constexpr int64_t kTall = 2304;
  Matrix weight = NormalValues(kTall * kCols, 7);
  for (int64_t r = 0; r < kTall; ++r) {
    const double size = r % 100 == 3 ? 0.0 : std::exp2(6.0 * static_cast<double>(r) / kTall - 3.0);
    for (int64_t c = 0; c < kCols; ++c) weight[r * kCols + c] *= size;
  }
  SetLayer(kTall, kCols, weight, Moment(kTokens, x_, x_));
  for (const double bits : {1.0, 3.0, 12.0}) {
    SetRate(bits);
    EXPECT_NEAR(StoredBits(Solve(), {kTall}), bits, 5e-3) << bits;
  }
}

TEST_F(WaterSicTest, ErrorFallsSixDecibelsABit) {
  SetRate(3.0);
  const double three = Distortion(Solve());
  SetRate(5.0);
  const double five = Distortion(Solve());
  EXPECT_NEAR(0.5 * std::log2(three / five), 2.0, 0.1);
}

TEST_F(WaterSicTest, DequantizedIsWhatAReaderDecodes) {
  SetRate(2.5);
  const LayerSolution solution = Solve();
  Matrix decoded(kRows * kCols);
  Lattice(solution).Dequantize(0, kRows, absl::MakeSpan(decoded));
  EXPECT_EQ(Values(solution.dequantized), decoded);
  EXPECT_TRUE(solution.transform.transform.identity);
  EXPECT_TRUE(solution.decoded.empty());
}

TEST_F(WaterSicTest, LayersOfAGroupAreSolvedTogetherAndCountedApart) {
  problem_.layer_rows = {100, 20, 40};
  SetRate(4.0);
  const LayerSolution solution = Solve();
  EXPECT_NEAR(StoredBits(solution, problem_.layer_rows), 4.0, 5e-3);
  EXPECT_EQ(solution.entropy_bits.size(), 3);
}

TEST_F(WaterSicTest, TheSameBitsOnAnyNumberOfThreads) {
  const Matrix weight = NormalValues(300 * kCols, 5);
  std::vector<Matrix> results;
  for (const int threads : {1, 2, 4}) {
    const auto backend = NewCpuBackend(threads);
    const auto stream = backend->NewStream(nullptr).value();
    SetLayer(300, kCols, weight, Moment(kTokens, x_, x_));
    LayerProblem problem = problem_;
    problem.weight =
        backend->Upload(*stream, backend_->Download(*stream_, problem.weight).value()).value();
    problem.full_moment =
        backend->Upload(*stream, backend_->Download(*stream_, problem.full_moment).value()).value();
    const LayerSolution solution =
        WaterSicMethod().Solve(*backend, *stream, problem, [](absl::string_view) {}).value();
    results.push_back(Values(solution.dequantized));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

// The theorem: for Gaussian weights of any second moment the rate is 0.5 log2(2 pi e / 12) above
// R_WF(D) at high rate. Rates are entropies column class by column class (what the coder stores,
// tables and headers apart); side information would spoil it at this size.
TEST_F(WaterSicTest, GapToTheLimitIsThatOfTheCubicLattice) {
  constexpr int64_t kSize = 256;
  constexpr int64_t kManyRows = 1536;
  const std::vector<std::pair<std::string, Matrix>> moments = {
      {"white", Square(kSize, [](int64_t i, int64_t j) { return i == j ? 1.0 : 0.0; })},
      {"graded", Square(kSize,
                        [](int64_t i, int64_t j) {
                          return (i == j ? std::exp(-4.0 * static_cast<double>(i) / kSize) : 0.0) +
                                 0.02 * std::cos(0.1 * static_cast<double>(i - j));
                        })},
      {"correlated", Square(kSize, [](int64_t i, int64_t j) {
         return std::pow(0.9, std::abs(static_cast<double>(i - j)));
       })}};
  for (const auto& [name, moment] : moments) {
    SetLayer(kManyRows, kSize, NormalValues(kManyRows * kSize, 7), moment);
    const std::vector<double> eigenvalues =
        backend_->Eigenvalues(*stream_, problem_.full_moment).value();
    for (const double bits : {4.0, 5.0}) {
      SetRate(bits);
      const LayerSolution solution = Solve();
      const absl::Span<const int32_t> codes = Lattice(solution).codes();
      const CodedIntegers coded = EncodeIntegers(codes, kSize).value();
      // Tables and states are overhead, as scales are.
      const double overhead = 16.0 * static_cast<double>(coded.frequencies.size()) +
                              8.0 * 132.0 * static_cast<double>(coded.segment_offsets.size()) / 2.0;
      const double rate = (8.0 * static_cast<double>(coded.bytes()) - overhead) /
                          static_cast<double>(kManyRows * kSize);
      const double limit = WaterfillingRate(1.0, eigenvalues, Distortion(solution));
      EXPECT_NEAR(rate - limit, 0.2546, 0.01) << name << " at " << bits << " bits";
    }
  }
}

TEST_F(WaterSicTest, DeadInputsAreDroppedAndCostAlmostNothing) {
  Matrix moment = Moment(kTokens, x_, x_);
  for (const int64_t dead : {0, 17, 95}) {
    for (int64_t i = 0; i < kCols; ++i) {
      const double scale = dead == 17 ? 1e-4 : 0.0;  // weak or zero
      moment[i * kCols + dead] *= scale;
      moment[dead * kCols + i] *= scale;
    }
  }
  SetLayer(kRows, kCols, NormalValues(kRows * kCols, 1), moment);
  const LayerSolution solution = Solve();
  EXPECT_EQ(solution.dropped_inputs, 3);
  EXPECT_THAT(Lattice(solution).dead_columns(), ElementsAre(0, 17, 95));
  EXPECT_NEAR(StoredBits(solution, {kRows}), 3.0, 5e-3);
  const Matrix values = Values(solution.dequantized);
  double largest = 0.0;
  for (int64_t r = 0; r < kRows; ++r) {
    for (const int64_t dead : {0, 17, 95}) {
      largest = std::max(largest, std::abs(values[r * kCols + dead]));
    }
  }
  EXPECT_EQ(largest, 0.0);
}

// Inputs that quantized predecessors have changed: solving for them beats ignoring them.
TEST_F(WaterSicTest, DriftIsCorrected) {
  Matrix x_hat = x_;
  const Matrix noise = NormalValues(kTokens * kCols, 9);
  for (size_t i = 0; i < x_hat.size(); ++i) x_hat[i] = 0.9 * x_hat[i] + 0.4 * noise[i];
  const DeviceTensor hat = Upload(kCols, kCols, Moment(kTokens, x_hat, x_hat));
  const DeviceTensor cross = Upload(kCols, kCols, Moment(kTokens, x_, x_hat));
  const auto drift_error = [&](const LayerSolution& solution) {
    return backend_
        ->MeasureDriftError(*stream_, problem_.weight, solution.dequantized, problem_.full_moment,
                            hat, cross)
        ->error;
  };
  SetRate(4.0);
  const double ignored = drift_error(Solve());
  problem_.second_moment_hat = hat;
  problem_.cross_moment = cross;
  const LayerSolution solution = Solve();
  EXPECT_LT(drift_error(solution), 0.9 * ignored);
  EXPECT_NEAR(StoredBits(solution, {kRows}), 4.0, 5e-3);
}

// A residual moment moves the targets: with residual = D Mhat the solution approximates W + D.
TEST_F(WaterSicTest, ResidualMovesTheTarget) {
  const Matrix moment = Moment(kTokens, x_, x_);
  const Matrix shift = NormalValues(kRows * kCols, 11);
  Matrix residual(kRows * kCols);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t i = 0; i < kCols; ++i) {
      for (int64_t j = 0; j < kCols; ++j) {
        residual[r * kCols + j] += shift[r * kCols + i] * moment[i * kCols + j];
      }
    }
  }
  problem_.residual_moment = Upload(kRows, kCols, residual);
  SetRate(6.0);
  const LayerSolution solution = Solve();
  Matrix moved = Values(problem_.weight);
  for (size_t i = 0; i < moved.size(); ++i) moved[i] += shift[i];
  const WeightError off = backend_
                              ->MeasureWeightError(*stream_, Upload(kRows, kCols, moved),
                                                   solution.dequantized, {}, ErrorDetail::kRows)
                              .value();
  double energy = 0.0;
  for (const double value : moved) energy += value * value;
  EXPECT_LT(off.sum_squares, 0.01 * energy);
}

TEST_F(WaterSicTest, RatesThatCannotBeMetNameTheRange) {
  SetRate(0.05);  // scales alone take more
  ExpectRefused(absl::StatusCode::kInvalidArgument, "expected a rate that this layer can have");
  SetLayer(kRows, kCols, Matrix(kRows * kCols), Moment(kTokens, x_, x_));
  ExpectRefused(absl::StatusCode::kInvalidArgument, "got 3.000");
}

// Headers and states weigh more than the weights of such layers: what they can have is an answer.
TEST_F(WaterSicTest, TinyAndThinLayersComeOutOrNameTheirRange) {
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {1, 300}, {300, 1}, {5, 7}, {40, 3}}) {
    const Matrix x = Tokens(50, cols, 3);
    SetLayer(rows, cols, NormalValues(rows * cols, 1), Moment(50, x, x));
    for (const double bits : {2.0, 15.0}) {
      SetRate(bits);
      const absl::StatusOr<LayerSolution> solution = TrySolve();
      if (solution.ok()) {
        const double granularity = 512.0 / static_cast<double>(rows * cols);
        EXPECT_NEAR(StoredBits(*solution, {rows}), bits, granularity) << rows << "x" << cols;
      } else {
        EXPECT_EQ(solution.status().code(), absl::StatusCode::kInvalidArgument);
        EXPECT_THAT(solution.status().message(), HasSubstr("a rate that this layer can have"));
      }
    }
  }
}

TEST_F(WaterSicTest, SingularMomentsAreSolvedExactly) {
  const Matrix few = Tokens(10, kCols, 3);
  SetLayer(kRows, kCols, NormalValues(kRows * kCols, 1), Moment(10, few, few));
  const LayerSolution solution = Solve();
  EXPECT_EQ(solution.outcome, Outcome::kExact);
  EXPECT_NEAR(StoredBits(solution, {kRows}), 3.0, 5e-3);
}

TEST_F(WaterSicTest, SlightlyIndefiniteMomentsAreDampedAndSaySo) {
  Matrix moment = Square(kCols, [](int64_t i, int64_t j) { return i == j ? 1.0 : 0.0; });
  // Eigenvalues 1 +- 1.002 in the first two inputs.
  moment[1] = moment[kCols] = 1.002;
  SetLayer(kRows, kCols, NormalValues(kRows * kCols, 1), moment);
  const LayerSolution solution = Solve();
  EXPECT_EQ(solution.outcome, Outcome::kDamped);
  EXPECT_EQ(solution.retries, 2);
  EXPECT_DOUBLE_EQ(solution.damping, 1e-2);
}

TEST_F(WaterSicTest, MomentsThatAreNoneAreRefused) {
  Matrix moment = Square(kCols, [](int64_t i, int64_t j) { return i == j ? 1.0 : 0.0; });
  const Matrix weight = NormalValues(kRows * kCols, 1);
  moment[1] = moment[kCols] = 2.0;
  SetLayer(kRows, kCols, weight, moment);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "indefinite even with 0.1 of its mean");
  moment[kCols] = 0.5;
  SetLayer(kRows, kCols, weight, moment);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "expected a symmetric matrix");
  moment[kCols] = moment[1] = 0.0;
  moment[5 * kCols + 5] = -1.0;
  SetLayer(kRows, kCols, weight, moment);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "expected a diagonal of at least 0; got -1");
  SetLayer(kRows, kCols, weight, Matrix(kCols * kCols));
  ExpectRefused(absl::StatusCode::kInvalidArgument, "got a diagonal of zeros");
  problem_.full_moment = {};
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "full second moment");
}

TEST_F(WaterSicTest, MomentsOfDriftComeTogether) {
  problem_.cross_moment = problem_.full_moment;
  ExpectRefused(absl::StatusCode::kInvalidArgument, "expected both or neither");
}

}  // namespace
}  // namespace quantd::compute
