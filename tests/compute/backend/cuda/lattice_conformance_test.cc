// WaterSIC's ops: CUDA against the CPU. Blocked sums round differently, so a target within 1e-12 of
// a tie may be rounded to the other side: one code in a thousand is allowed to differ.
#include <gmock/gmock.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "compute/formats/lattice_weight.h"
#include "compute/formats/safetensors.h"
#include "compute/stages/watersic.h"
#include "tests/compute/backend/cuda/cuda_test.h"

namespace quantd::compute {
namespace {

using testing::DoubleNear;
using testing::HasSubstr;
using testing::Pointwise;

double MeanDiagonal(const Tensor& moment) {
  const int64_t n = moment.dim(0);
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += moment.as<double>()[i * (n + 1)];
  return sum / static_cast<double>(n);
}

double ShareOfEqual(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return 0.0;
  int64_t equal = 0;
  for (size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i] ? 1 : 0;
  return static_cast<double>(equal) / static_cast<double>(a.size());
}

class CudaLatticeTest : public CudaTest {
 protected:
  struct Layer {
    Tensor weight;
    Tensor moment;
    std::optional<Tensor> moment_hat;
    std::optional<Tensor> cross;
    std::optional<Tensor> residual;
  };
  // One layer on its way on one device.
  struct Solved {
    LatticeInputs inputs;
    LatticeProblem problem;
    double spacing = 0.0;
    std::vector<double> alpha;
    LatticeCodes codes;
  };

  static Layer PlainLayer(int64_t rows, int64_t cols, int seed) {
    return {.weight = Random({rows, cols}, seed),
            .moment = RandomMoment(cols, seed + 1),
            .moment_hat = {},
            .cross = {},
            .residual = {}};
  }

  static LatticeInputs Inputs(Side& side, const Layer& layer) {
    const auto upload = [&](const std::optional<Tensor>& tensor) {
      return tensor.has_value() ? side.Upload(*tensor) : DeviceTensor();
    };
    LatticeInputs inputs = {.weight = side.Upload(layer.weight),
                            .moment = side.Upload(layer.moment),
                            .factor = {},
                            .moment_hat = upload(layer.moment_hat),
                            .cross = upload(layer.cross),
                            .residual = upload(layer.residual)};
    const Tensor& factored = layer.moment_hat.has_value() ? *layer.moment_hat : layer.moment;
    inputs.factor =
        side.backend
            ->FactorMoment(*side.stream,
                           layer.moment_hat.has_value() ? inputs.moment_hat : inputs.moment,
                           1e-4 * MeanDiagonal(factored))
            .value();
    return inputs;
  }

  // `spacing` is relative to the mean of diag L.
  static Solved Solve(Side& side, const Layer& layer, double spacing) {
    Solved solved;
    solved.inputs = Inputs(side, layer);
    const std::vector<double>& diagonal = solved.inputs.factor.diagonal;
    solved.spacing = spacing * std::accumulate(diagonal.begin(), diagonal.end(), 0.0) /
                     static_cast<double>(diagonal.size());
    for (const double l : diagonal) solved.alpha.push_back(solved.spacing / l);
    solved.problem = side.backend->PrepareLattice(*side.stream, solved.inputs).value();
    solved.codes = side.backend
                       ->CancelSuccessively(*side.stream, solved.inputs.factor,
                                            solved.problem.target, solved.spacing)
                       .value();
    return solved;
  }

  // The stream as it is, and with a changed bit here and there: the same codes or the same error.
  void ExpectDecodesAlike(const CodedIntegers& coded, int64_t rows, int64_t cols) {
    const auto decode = [&](Side& side, const CodedIntegers& from) -> absl::StatusOr<Tensor> {
      const absl::StatusOr<DeviceTensor> codes =
          side.backend->DecodeCodes(*side.stream, from, rows, cols);
      if (!codes.ok()) return codes.status();
      return side.backend->Download(*side.stream, *codes);
    };
    const Tensor want = decode(cpu_, coded).value();
    const absl::StatusOr<Tensor> got = decode(cuda_, coded);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(std::ranges::equal(got->as<int32_t>(), want.as<int32_t>()));
    std::mt19937 generator(static_cast<unsigned>(rows * cols));
    for (int i = 0; i < 20; ++i) {
      CodedIntegers damaged = coded;
      damaged.stream[generator() % damaged.stream.size()] ^= std::byte{1} << generator() % 8;
      const absl::StatusOr<Tensor> on_cpu = decode(cpu_, damaged);
      const absl::StatusOr<Tensor> on_device = decode(cuda_, damaged);
      EXPECT_EQ(on_device.status(), on_cpu.status());
    }
  }

  void ExpectSameProblem(const Solved& want, const Solved& got) {
    EXPECT_LE(RelativeDistance(cuda_.Values(got.problem.correlation),
                               cpu_.Values(want.problem.correlation)),
              1e-12);
    EXPECT_LE(RelativeDistance(cuda_.Values(got.problem.target), cpu_.Values(want.problem.target)),
              1e-9);
    EXPECT_NEAR(got.problem.energy, want.problem.energy, 1e-12 * want.problem.energy);
  }

  // Codes and all that is fitted to them.
  void ExpectConforms(const Layer& layer, double spacing) {
    const Solved want = Solve(cpu_, layer, spacing);
    const Solved got = Solve(cuda_, layer, spacing);
    ExpectSameProblem(want, got);
    const double equal = ShareOfEqual(cuda_.Values(got.codes.codes), cpu_.Values(want.codes.codes));
    EXPECT_GE(equal, 0.999);
    const LatticeScales fitted =
        cpu_.backend->FitLatticeScales(*cpu_.stream, want.problem, want.codes, want.alpha).value();
    const LatticeScales scales =
        cuda_.backend->FitLatticeScales(*cuda_.stream, got.problem, got.codes, got.alpha).value();
    EXPECT_NEAR(scales.loss, fitted.loss,
                1e-6 * std::abs(fitted.loss) + 1e-12 * want.problem.energy);
    if (equal < 1.0) return;  // scales of other codes
    EXPECT_THAT(got.codes.gamma, Pointwise(DoubleNear(1e-9), want.codes.gamma));
    EXPECT_LE(RelativeDistance(scales.row, fitted.row), 1e-6);
    EXPECT_LE(RelativeDistance(scales.column, fitted.column), 1e-6);
    const auto rows = [&](Side& side, const Solved& solved) {
      return side.backend
          ->FitRowScales(*side.stream, solved.problem, solved.codes.codes, fitted.column)
          .value();
    };
    EXPECT_LE(RelativeDistance(rows(cuda_, got), rows(cpu_, want)), 1e-6);
    const auto decoded = [&](Side& side, const Solved& solved) {
      return side.Values(side.backend
                             ->DecodeLattice(*side.stream, solved.codes.codes, fitted.row,
                                             fitted.column, {}, layer.weight.dim(1))
                             .value());
    };
    EXPECT_EQ(decoded(cuda_, got), decoded(cpu_, want));
  }
};

TEST_F(CudaLatticeTest, LayersOfAnySizeAndRate) {
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {37, 96}, {300, 131}, {600, 49}, {257, 33}, {130, 300}}) {
    for (const double spacing : {0.05, 0.7, 4.0}) {
      SCOPED_TRACE(testing::Message() << rows << "x" << cols << " at " << spacing);
      ExpectConforms(PlainLayer(rows, cols, 3), spacing);
    }
  }
}

// Rows decide how blocks exchange their sums: clusters of four shapes, a grid, a grid of narrow
// panels.
TEST_F(CudaLatticeTest, RowsOfAnyNumber) {
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
           {4096, 70}, {4097, 64}, {8193, 45}, {16385, 21}, {33000, 20}, {70001, 9}}) {
    SCOPED_TRACE(testing::Message() << rows << "x" << cols);
    ExpectConforms(PlainLayer(rows, cols, 5), 0.8);
  }
}

TEST_F(CudaLatticeTest, DriftAndResidualMoveTheTarget) {
  Layer layer = PlainLayer(75, 96, 7);
  layer.residual = Random({75, 96}, 8);
  for (double& value : layer.residual->as<double>()) value *= 0.1;
  {
    SCOPED_TRACE("residual");
    ExpectConforms(layer, 0.5);
  }
  const Tensor other = RandomMoment(96, 11);
  layer.moment_hat = layer.moment.Clone();
  layer.cross = layer.moment.Clone();
  for (int64_t i = 0; i < 96 * 96; ++i) {
    layer.moment_hat->as<double>()[i] += 0.1 * other.as<double>()[i];
    layer.cross->as<double>()[i] += 0.01 * static_cast<double>(i % 7) * other.as<double>()[i];
  }
  ExpectConforms(layer, 0.5);
}

// Counts and the stored stream, byte for byte, of layers of a group: tables of one and of several
// classes, codes with raw bits, with escapes, and too few to encode on the device.
TEST_F(CudaLatticeTest, CountsAndBytesAreThoseOfTheCpu) {
  const auto check = [&](Side& side, const DeviceTensor& z, int64_t first, int64_t rows,
                         CodeCounts& counts, CodedIntegers& coded) {
    counts = side.backend->CountCodes(*side.stream, z, first, rows).value();
    coded = side.backend->EncodeCodes(*side.stream, z, first, rows, ChooseModel(counts)).value();
  };
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{37, 96}, {1000, 131}, {9000, 7}, {5000, 160}}) {
    for (const double spacing : {1e-5, 2e-3, 0.3, 6.0}) {
      SCOPED_TRACE(testing::Message() << rows << "x" << cols << " at " << spacing);
      const Layer layer = PlainLayer(rows, cols, 29);
      const Solved want = Solve(cpu_, layer, spacing);
      const Solved got = Solve(cuda_, layer, spacing);
      if (cpu_.Values(want.codes.codes) != cuda_.Values(got.codes.codes)) continue;  // a tie
      for (const auto& [first, count] :
           std::vector<std::pair<int64_t, int64_t>>{{0, rows}, {rows / 3, rows / 2}}) {
        CodeCounts counts[2];
        CodedIntegers coded[2];
        check(cpu_, want.codes.codes, first, count, counts[0], coded[0]);
        check(cuda_, got.codes.codes, first, count, counts[1], coded[1]);
        EXPECT_EQ(counts[0].values, counts[1].values);
        EXPECT_EQ(counts[0].bin_of_column, counts[1].bin_of_column);
        EXPECT_EQ(counts[0].of_bin, counts[1].of_bin);
        for (CodeCounts& each : counts) std::sort(each.large.begin(), each.large.end());
        EXPECT_EQ(counts[0].large, counts[1].large);
        EXPECT_EQ(coded[0].stream, coded[1].stream);
        EXPECT_EQ(coded[0].segment_offsets, coded[1].segment_offsets);
        EXPECT_EQ(coded[0].frequencies, coded[1].frequencies);
        EXPECT_EQ(coded[0].escapes, coded[1].escapes);
        ExpectDecodesAlike(coded[0], count, cols);
      }
    }
  }
}

TEST_F(CudaLatticeTest, TheSameBitsTwice) {
  const Layer layer = PlainLayer(900, 200, 13);
  std::vector<std::vector<double>> seen;
  for (int run = 0; run < 2; ++run) {
    const Solved solved = Solve(cuda_, layer, 0.4);
    const LatticeScales scales =
        cuda_.backend->FitLatticeScales(*cuda_.stream, solved.problem, solved.codes, solved.alpha)
            .value();
    std::vector<double> all = cuda_.Values(solved.codes.codes);
    for (const std::vector<double>& more :
         {solved.codes.gamma, scales.row, scales.column, cuda_.Values(solved.problem.target)}) {
      all.insert(all.end(), more.begin(), more.end());
    }
    all.push_back(scales.loss);
    all.push_back(solved.problem.energy);
    seen.push_back(std::move(all));
  }
  EXPECT_EQ(seen[0], seen[1]);
}

TEST_F(CudaLatticeTest, DeadColumnsDecodeToZero) {
  const Solved solved = Solve(cuda_, PlainLayer(40, 3, 17), 0.3);
  const std::vector<double> row(40, 2.0);
  const std::vector<double> all = cuda_.Values(
      cuda_.backend->DecodeLattice(*cuda_.stream, solved.codes.codes, row, {1, 2, 3}, {0, 3, 4}, 6)
          .value());
  const std::vector<double> z = cuda_.Values(solved.codes.codes);
  for (int64_t r = 0; r < 40; ++r) {
    for (const int64_t dead : {1, 2, 5}) EXPECT_EQ(all[r * 6 + dead], 0.0);
    EXPECT_EQ(all[r * 6 + 3], 2.0 * 2.0 * z[40 + r]);
  }
}

TEST_F(CudaLatticeTest, CodesThatDoNotFitAreRefused) {
  for (const int64_t rows : {40, 9000}) {
    const Layer layer = PlainLayer(rows, 40, 19);
    const Solved solved = Solve(cuda_, layer, 0.3);
    const auto cancel = [&](double spacing) {
      return cuda_.backend
          ->CancelSuccessively(*cuda_.stream, solved.inputs.factor, solved.problem.target, spacing)
          .status();
    };
    EXPECT_EQ(cancel(1e-12).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(cancel(1e-300).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(cancel(0.0).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(cancel(solved.spacing).ok());
  }
}

TEST_F(CudaLatticeTest, CancelledStreamsStop) {
  const Layer layer = PlainLayer(40, 64, 23);
  const Solved solved = Solve(cuda_, layer, 0.3);
  CancelFlag cancel;
  const std::unique_ptr<Stream> stream = cuda_.backend->NewStream(&cancel).value();
  cancel.Cancel();
  EXPECT_EQ(
      cuda_.backend->CancelSuccessively(*stream, solved.inputs.factor, solved.problem.target, 1.0)
          .status()
          .code(),
      absl::StatusCode::kCancelled);
}

// The whole method: as long as no code differs, the search takes the same steps and the stored
// codes are the same bytes.
TEST_F(CudaLatticeTest, WaterSicStoresTheSameCodes) {
  const Layer layer = PlainLayer(320, 96, 31);
  const auto solve = [&](Side& side) {
    LayerProblem problem;
    problem.weight = side.Upload(layer.weight);
    problem.full_moment = side.Upload(layer.moment);
    problem.layer_rows = {200, 120};
    problem.recipe =
        ResolveRecipe(
            {.format = Format::kEntropyCoded, .method = Method::kWaterSic, .rate_bits = 3.0})
            .value();
    return WaterSicMethod()
        .Solve(*side.backend, *side.stream, problem, [](absl::string_view) {})
        .value();
  };
  const LayerSolution want = solve(cpu_);
  const LayerSolution got = solve(cuda_);
  EXPECT_LE(RelativeDistance(cuda_.Values(got.dequantized), cpu_.Values(want.dequantized)), 2e-3);
  EXPECT_THAT(got.entropy_bits, Pointwise(DoubleNear(1e-9), want.entropy_bits));
  for (const auto& [first, rows] : std::vector<std::pair<int64_t, int64_t>>{{0, 200}, {200, 120}}) {
    const auto stored = want.encoded->Pack(first, rows).value();
    const auto packed = got.encoded->Pack(first, rows).value();
    for (size_t i = 0; i < stored.size(); ++i) {
      if (stored[i].name.substr(0, 2) != "z_") continue;
      EXPECT_EQ(packed[i].tensor.bytes(), stored[i].tensor.bytes()) << stored[i].name;
    }
  }
}

// --- golden data -------------------------------------------------------------------------------

const SafetensorsFile& File() {
  static const auto* file =
      new SafetensorsFile(SafetensorsFile::Open(GoldenFile("watersic_golden.safetensors")).value());
  return *file;
}

std::vector<std::string> CaseNames() {
  const auto spec = nlohmann::json::parse(File().header().metadata.at("spec"));
  std::vector<std::string> names;
  for (const auto& [name, facts] : spec.items()) names.push_back(name);
  return names;
}

class CudaWaterSicGoldenTest : public CudaLatticeTest,
                               public testing::WithParamInterface<std::string> {
 protected:
  std::optional<Tensor> Find(const std::string& name) const {
    absl::StatusOr<Tensor> tensor = File().Read(GetParam() + "/" + name);
    if (!tensor.ok()) return std::nullopt;
    return *std::move(tensor);
  }
  std::vector<double> Values(const std::string& name) const {
    const Tensor host = Find(name).value();
    return {host.as<double>().begin(), host.as<double>().end()};
  }
  // Without the dead columns, as the host picks them.
  std::optional<Tensor> Live(const std::string& name, bool square) {
    const std::optional<Tensor> all = Find(name);
    if (!all.has_value()) return std::nullopt;
    const auto spec = nlohmann::json::parse(File().header().metadata.at("spec"));
    const std::vector<int64_t> dead = spec.at(GetParam()).at("dead");
    std::vector<int64_t> live;
    for (int64_t c = 0; c < all->dim(1); ++c) {
      if (std::find(dead.begin(), dead.end(), c) == dead.end()) live.push_back(c);
    }
    const DeviceTensor part = cpu_.backend
                                  ->Submatrix(*cpu_.stream, cpu_.Upload(*all),
                                              square ? live : std::vector<int64_t>(), live)
                                  .value();
    return cpu_.backend->Download(*cpu_.stream, part).value();
  }
};

TEST_P(CudaWaterSicGoldenTest, CodesAndScales) {
  const Layer layer = {.weight = Live("weight", false).value(),
                       .moment = Live("second_moment", true).value(),
                       .moment_hat = Live("second_moment_hat", true),
                       .cross = Live("cross_moment", true),
                       .residual = Live("residual_moment", false)};
  const LatticeInputs inputs = Inputs(cuda_, layer);
  const LatticeProblem problem = cuda_.backend->PrepareLattice(*cuda_.stream, inputs).value();
  const std::vector<double> alpha = Values("spacing");
  const LatticeCodes codes = cuda_.backend
                                 ->CancelSuccessively(*cuda_.stream, inputs.factor, problem.target,
                                                      alpha[0] * inputs.factor.diagonal[0])
                                 .value();
  const std::vector<double> z = cuda_.Values(codes.codes);
  const Tensor golden = Find("codes").value();
  const int64_t rows = golden.dim(0);
  const int64_t cols = golden.dim(1);
  int64_t unequal = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      unequal += z[c * rows + r] == golden.as<int32_t>()[r * cols + c] ? 0 : 1;
    }
  }
  EXPECT_EQ(unequal, 0);
  const LatticeScales scales =
      cuda_.backend->FitLatticeScales(*cuda_.stream, problem, codes, alpha).value();
  EXPECT_THAT(scales.row, Pointwise(DoubleNear(1e-6), Values("row_scale")));
  const std::vector<double> factor = Values("col_scale");
  for (size_t i = 0; i < factor.size(); ++i) {
    EXPECT_NEAR(scales.column[i] / alpha[i], factor[i], 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaWaterSicGoldenTest, testing::ValuesIn(CaseNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

}  // namespace
}  // namespace quantd::compute
