// A layer that is cancelled in the middle of an op stops soon, whichever op it is. Measured in the
// processor time of this process, which does not depend on what else the machine does.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "compute/backend/cpu/cpu_backend.h"
#include "compute/formats/number_format.h"

namespace quantd::compute {
namespace {

constexpr int64_t kRows = 1024;
constexpr int64_t kCols = 1536;

double ProcessorSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

Tensor RandomMatrix(int64_t rows, int64_t cols) {
  Tensor matrix = Tensor::Create(DType::kF64, {rows, cols}).value();
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  for (double& value : matrix.as<double>()) value = normal(random);
  return matrix;
}

// Of inputs whose neighbours are alike.
Tensor Moment(int64_t cols = kCols) {
  Tensor moment = Tensor::Create(DType::kF64, {cols, cols}).value();
  for (int64_t i = 0; i < cols; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      moment.as<double>()[i * cols + j] = std::pow(0.9, std::abs(i - j));
    }
  }
  return moment;
}

class CancellationTest : public testing::Test {
 protected:
  using Op = std::function<absl::Status(Stream&)>;

  // Runs the op to its end, then again and cancels it after a quarter of the processor time that
  // took. An op that looks now and then does not do half of the work from there on; one that never
  // looks does three quarters of it.
  void ExpectStops(const Op& op) {
    const double begin = ProcessorSeconds();
    ASSERT_TRUE(op(*stream_).ok());
    const double whole = ProcessorSeconds() - begin;

    CancelFlag flag;
    std::unique_ptr<Stream> stream = backend_->NewStream(&flag).value();
    std::atomic<bool> has_ended = false;
    double cancelled_at = 0.0;
    const double start = ProcessorSeconds();
    std::thread canceller([&] {
      while (!has_ended && ProcessorSeconds() < start + whole / 4) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      cancelled_at = ProcessorSeconds();
      flag.Cancel();
    });
    const absl::Status status = op(*stream);
    const double ended_at = ProcessorSeconds();
    has_ended = true;
    canceller.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
    EXPECT_LT(ended_at - cancelled_at, whole / 2) << "of " << whole << " s";
  }

  DeviceTensor Upload(const Tensor& tensor) { return backend_->Upload(*stream_, tensor).value(); }

  const std::unique_ptr<Backend> backend_ = NewCpuBackend(2);
  const std::unique_ptr<Stream> stream_ = backend_->NewStream(nullptr).value();
  const DeviceTensor weight_ = Upload(RandomMatrix(kRows, kCols));
  const DeviceTensor moment_ = Upload(Moment());
};

TEST_F(CancellationTest, Factorization) {
  ExpectStops([&](Stream& s) { return backend_->FactorMoment(s, moment_, 0.01).status(); });
}

// Of a size from which on it is not one short call of LAPACK.
TEST_F(CancellationTest, Eigenvalues) {
  const DeviceTensor moment = Upload(Moment(2200));
  ExpectStops([&](Stream& s) { return backend_->Eigenvalues(s, moment).status(); });
}

TEST_F(CancellationTest, ConditionalTransforms) {
  const TransformProblem problem = {.kind = TransformKind::kWush,
                                    .solver = Solver::kConditional,
                                    .block_size = 64,
                                    .weight = weight_,
                                    .second_moment = moment_};
  ExpectStops([&](Stream& s) { return backend_->SolveTransforms(s, problem).status(); });
}

TEST_F(CancellationTest, MarginalTransforms) {
  const TransformProblem problem = {
      .kind = TransformKind::kWush,
      .block_size = 64,
      .weight = weight_,
      .second_moment = backend_->DiagonalBlocks(*stream_, moment_, 64).value()};
  ExpectStops([&](Stream& s) { return backend_->SolveTransforms(s, problem).status(); });
}

TEST_F(CancellationTest, Gptq) {
  for (const Solver solver : {Solver::kMarginal, Solver::kConditional}) {
    Recipe recipe;
    recipe.format = Format::kInt4;
    recipe.method = Method::kGptq;
    recipe.transform = TransformKind::kWush;
    recipe.solver = solver;
    recipe = ResolveRecipe(recipe).value();
    const auto format = NumberFormat::Create(recipe, kCols);
    const GptqProblem problem = {.transform = recipe.transform,
                                 .solver = solver,
                                 .block_size = recipe.transform_block_size,
                                 .weight = weight_,
                                 .second_moment = moment_};
    ExpectStops([&](Stream& s) { return backend_->SolveGptq(s, *format, problem).status(); });
  }
}

TEST_F(CancellationTest, Lattice) {
  const MomentFactor factor = backend_->FactorMoment(*stream_, moment_, 0.01).value();
  const DeviceTensor target = Upload(RandomMatrix(kCols, kRows));
  ExpectStops(
      [&](Stream& s) { return backend_->CancelSuccessively(s, factor, target, 0.5).status(); });

  LatticeInputs inputs;
  inputs.weight = weight_;
  inputs.moment = moment_;
  inputs.factor = factor;
  ExpectStops([&](Stream& s) { return backend_->PrepareLattice(s, inputs).status(); });

  const LatticeProblem problem = backend_->PrepareLattice(*stream_, inputs).value();
  const LatticeCodes codes =
      backend_->CancelSuccessively(*stream_, factor, problem.target, 0.5).value();
  const std::vector<double> spacing(kCols, 0.5);
  ExpectStops(
      [&](Stream& s) { return backend_->FitLatticeScales(s, problem, codes, spacing).status(); });
}

TEST_F(CancellationTest, Measuring) {
  const DeviceTensor sample = Upload(RandomMatrix(512, kCols));
  ExpectStops([&](Stream& s) {
    return backend_->MeasureWeightError(s, weight_, DeviceTensor(), moment_, ErrorDetail::kRows)
        .status();
  });
  ExpectStops([&](Stream& s) { return backend_->ComputeOutputs(s, weight_, sample).status(); });
}

}  // namespace
}  // namespace quantd::compute
