#include "compute/backend/cpu/cpu_backend.h"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compute/backend/cpu/eigenvalues.h"
#include "compute/backend/cpu/host_memory.h"
#include "compute/backend/cpu/lattice_problem.h"
#include "compute/backend/cpu/lattice_scales.h"
#include "compute/backend/cpu/measure.h"
#include "compute/backend/cpu/moment_accumulator.h"
#include "compute/backend/cpu/round_to_nearest.h"
#include "compute/backend/cpu/solve_gptq.h"
#include "compute/backend/cpu/transform_solver.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {
namespace {

std::string CpuModel() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (absl::StartsWith(line, "model name") && colon != std::string::npos) {
      return std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
    }
  }
  return "CPU";
}

absl::Status WrongShape(absl::string_view name, absl::string_view expected,
                        const DeviceTensor& tensor) {
  return absl::InvalidArgumentError(absl::StrCat(
      name, ": expected ", expected, "; got ",
      tensor.empty() ? "nothing" : absl::StrCat("[", absl::StrJoin(tensor.shape(), ", "), "]")));
}

absl::Status CheckMatrix(absl::string_view name, const DeviceTensor& tensor) {
  if (tensor.empty() || tensor.shape().size() != 2) return WrongShape(name, "a matrix", tensor);
  return absl::OkStatus();
}

absl::Status CheckSecondMoment(const DeviceTensor& moment, int64_t cols) {
  if (moment.empty()) return absl::OkStatus();
  const std::vector<int64_t>& shape = moment.shape();
  const bool full = shape.size() == 2 && shape[0] == cols && shape[1] == cols;
  const bool blocks = shape.size() == 3 && shape[1] == shape[2] && shape[0] * shape[1] == cols;
  if (full || blocks) return absl::OkStatus();
  return WrongShape("second_moment",
                    absl::StrCat("[", cols, ", ", cols, "] or diagonal blocks of it"), moment);
}

absl::Status CheckShape(absl::string_view name, const DeviceTensor& tensor, int64_t rows,
                        int64_t cols) {
  if (!tensor.empty() && tensor.shape() == std::vector<int64_t>{rows, cols}) {
    return absl::OkStatus();
  }
  return WrongShape(name, absl::StrCat("[", rows, ", ", cols, "]"), tensor);
}

absl::Status CheckSquare(absl::string_view name, const DeviceTensor& tensor) {
  if (absl::Status status = CheckMatrix(name, tensor); !status.ok()) return status;
  return CheckShape(name, tensor, tensor.dim(0), tensor.dim(0));
}

absl::Status CheckCount(absl::string_view name, size_t got, int64_t expected) {
  if (static_cast<int64_t>(got) == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": expected ", expected, " values; got ", got));
}

absl::Status CheckIndices(absl::string_view name, absl::Span<const int64_t> indices, int64_t size) {
  for (const int64_t index : indices) {
    if (index < 0 || index >= size) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": expected indices in [0, ", size, "); got ", index));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLattice(const LatticeInputs& in) {
  if (absl::Status status = CheckMatrix("weight", in.weight); !status.ok()) return status;
  const int64_t rows = in.weight.dim(0);
  const int64_t cols = in.weight.dim(1);
  absl::Status status = CheckShape("second_moment", in.moment, cols, cols);
  if (status.ok()) status = CheckShape("factor", in.factor.lower, cols, cols);
  if (status.ok() && !in.moment_hat.empty()) {
    status = CheckShape("second_moment_hat", in.moment_hat, cols, cols);
  }
  if (status.ok() && !in.cross.empty()) status = CheckShape("cross_moment", in.cross, cols, cols);
  if (status.ok() && !in.residual.empty()) {
    status = CheckShape("residual_moment", in.residual, rows, cols);
  }
  return status;
}

absl::Status CheckCodes(const DeviceTensor& codes) {
  if (absl::Status status = CheckMatrix("codes", codes); !status.ok()) return status;
  if (codes.dtype() == DType::kI32) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("codes: expected I32; got ", NameOf(codes.dtype())));
}

absl::Status CheckCodesOf(const LatticeProblem& problem, const DeviceTensor& codes,
                          const std::vector<double>& column_scale) {
  if (absl::Status status = CheckCodes(codes); !status.ok()) return status;
  absl::Status status = CheckCount("column scales", column_scale.size(), codes.dim(0));
  if (!status.ok()) return status;
  return CheckShape("correlation", problem.correlation, codes.dim(0), codes.dim(1));
}

int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGE_SIZE);
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : pool_(threads) {}

  DeviceInfo Describe() const override {
    const int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
    return {.name = "cpu",
            .description = absl::StrCat(CpuModel(), ", ", pool_.threads(),
                                        pool_.threads() == 1 ? " thread" : " threads"),
            .memory_bytes = memory,
            .used_bytes = ResidentBytes()};
  }

  // Every op of the contract takes every format and transform here.
  absl::Status Supports(const Recipe& /*resolved*/) const override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<Stream>> NewStream(const CancelFlag* cancel) override {
    return std::make_unique<CpuStream>(cancel);
  }

  absl::StatusOr<DeviceTensor> Upload(Stream& stream, const Tensor& tensor) override {
    if (!IsFloat(tensor.dtype())) {
      return absl::InvalidArgumentError(
          absl::StrCat("expected F64, F32, F16 or BF16; got ", NameOf(tensor.dtype())));
    }
    absl::StatusOr<WritableTensor> to = NewMatrix(stream, tensor.shape());
    if (!to.ok()) return to.status();
    const auto size = static_cast<int64_t>(SizeOf(tensor.dtype()));
    pool_.ParallelFor(0, tensor.elements(), 1 << 16, [&](int64_t b, int64_t e) {
      ConvertToDouble(tensor.dtype(), tensor.bytes().data() + b * size, e - b, to->data + b);
    });
    return to->tensor;
  }

  absl::StatusOr<Tensor> Download(Stream& stream, const DeviceTensor& tensor) override {
    if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
    const Tensor& host = HostTensor(tensor);
    return Tensor::FromBytes(host.dtype(), host.shape(), host.bytes());
  }

  absl::StatusOr<DeviceTensor> SliceRows(Stream& stream, const DeviceTensor& matrix, int64_t first,
                                         int64_t rows) override {
    if (absl::Status status = CheckMatrix("matrix", matrix); !status.ok()) return status;
    if (first < 0 || rows < 0 || first > matrix.dim(0) - rows) {
      return WrongShape("matrix", absl::StrCat("rows ", first, "..", first + rows), matrix);
    }
    if (rows == matrix.dim(0)) return matrix;
    absl::StatusOr<WritableTensor> to = NewMatrix(stream, {rows, matrix.dim(1)});
    if (!to.ok()) return to.status();
    const int64_t cols = matrix.dim(1);
    std::copy_n(Doubles(matrix) + first * cols, rows * cols, to->data);
    return to->tensor;
  }

  absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewAccumulator(
      const MomentSpec& spec, const SecondMoment* start) override {
    return NewCpuMomentAccumulator(pool_, spec, start);
  }

  absl::StatusOr<TransformSolution> SolveTransforms(Stream& stream,
                                                    const TransformProblem& p) override {
    TransformSolution solution;
    solution.transform.block_size = p.block_size;
    if (p.kind == TransformKind::kIdentity) {
      solution.transform.identity = true;
      return solution;
    }
    if (absl::Status status = CheckMatrix("weight", p.weight); !status.ok()) return status;
    BlockTransformProblem host = {.kind = p.kind,
                                  .solver = p.solver,
                                  .block_size = p.block_size,
                                  .damping = p.damping,
                                  .seed = p.seed,
                                  .rows = p.weight.dim(0),
                                  .cols = p.weight.dim(1),
                                  .weight = HostTensor(p.weight).as<double>(),
                                  .second_moment = {}};
    if (p.kind == TransformKind::kWus || p.kind == TransformKind::kWush) {
      if (absl::Status status = CheckSolverMoment(p); !status.ok()) return status;
      host.second_moment = HostTensor(p.second_moment).as<double>();
    }
    absl::StatusOr<HostTransform> solved = SolveBlockTransforms(pool_, host);
    if (!solved.ok()) return solved.status();
    if (absl::Status status = StoreTransform(stream, p, *solved, solution); !status.ok()) {
      return status;
    }
    if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
    return solution;
  }

  absl::StatusOr<QuantizedWeight> RoundToNearest(Stream& stream, const NumberFormat& format,
                                                 const BlockTransform& transform,
                                                 const DeviceTensor& weight) override {
    if (absl::Status status = CheckMatrix("weight", weight); !status.ok()) return status;
    if (absl::Status status = CheckTransform(transform, weight.dim(1)); !status.ok()) return status;
    return CpuRoundToNearest(pool_, stream, format, transform, weight);
  }

  absl::StatusOr<GptqSolution> SolveGptq(Stream& stream, const NumberFormat& format,
                                         const GptqProblem& problem) override {
    if (absl::Status status = CheckMatrix("weight", problem.weight); !status.ok()) return status;
    const int64_t cols = problem.weight.dim(1);
    absl::Status status = CheckShape("second_moment", problem.second_moment, cols, cols);
    if (status.ok() && !problem.cross_moment.empty()) {
      status = CheckShape("cross_moment", problem.cross_moment, cols, cols);
    }
    const bool has_blocks =
        problem.transform != TransformKind::kIdentity || problem.given_transform != nullptr;
    if (status.ok() && has_blocks && (problem.block_size < 1 || cols % problem.block_size != 0)) {
      status = WrongShape("weight", absl::StrCat("a multiple of ", problem.block_size, " columns"),
                          problem.weight);
    }
    if (status.ok() && problem.given_transform != nullptr) {
      status = CheckGivenTransform(*problem.given_transform, problem.block_size, cols);
    }
    if (!status.ok()) return status;
    return CpuSolveGptq(pool_, stream, format, problem);
  }

  absl::StatusOr<WeightError> MeasureWeightError(Stream& stream, const DeviceTensor& weight,
                                                 const DeviceTensor& dequantized,
                                                 const DeviceTensor& second_moment) override {
    if (absl::Status status = CheckMatrix("weight", weight); !status.ok()) return status;
    if (!dequantized.empty() && dequantized.shape() != weight.shape()) {
      return WrongShape("dequantized", "the weight's shape", dequantized);
    }
    absl::Status status = CheckSecondMoment(second_moment, weight.dim(1));
    if (!status.ok()) return status;
    return CpuMeasureWeightError(pool_, stream, weight, dequantized, second_moment);
  }

  absl::StatusOr<DeviceTensor> ComputeOutputs(Stream& stream, const DeviceTensor& weight,
                                              const DeviceTensor& sample) override {
    if (absl::Status status = CheckMatrix("weight", weight); !status.ok()) return status;
    if (absl::Status status = CheckSample(sample, weight.dim(1)); !status.ok()) return status;
    return CpuComputeOutputs(pool_, stream, weight, sample);
  }

  absl::StatusOr<OutputError> MeasureOutputError(Stream& stream, const NumberFormat& format,
                                                 const BlockTransform& transform,
                                                 const DeviceTensor& decoded,
                                                 const DeviceTensor& sample,
                                                 const DeviceTensor& outputs) override {
    if (absl::Status status = CheckMatrix("decoded", decoded); !status.ok()) return status;
    if (absl::Status status = CheckSample(sample, decoded.dim(1)); !status.ok()) return status;
    absl::Status status = CheckTransform(transform, decoded.dim(1));
    if (!status.ok()) return status;
    if (outputs.empty() || outputs.shape() != std::vector<int64_t>{sample.dim(0), decoded.dim(0)}) {
      return WrongShape("outputs", absl::StrCat("[", sample.dim(0), ", ", decoded.dim(0), "]"),
                        outputs);
    }
    return CpuMeasureOutputError(pool_, stream, format, transform, decoded, sample, outputs);
  }

  absl::StatusOr<double> MeasureSpread(Stream& stream, const BlockTransform& transform,
                                       const DeviceTensor& weight,
                                       const DeviceTensor& block_moment) override {
    if (absl::Status status = CheckMatrix("weight", weight); !status.ok()) return status;
    absl::Status status = CheckTransform(transform, weight.dim(1));
    if (status.ok()) status = CheckSecondMoment(block_moment, weight.dim(1));
    if (!status.ok()) return status;
    if (block_moment.empty() || block_moment.shape().size() != 3 ||
        (!transform.identity && block_moment.dim(1) != transform.block_size)) {
      return WrongShape("second_moment", "blocks of the transform's size", block_moment);
    }
    return CpuMeasureSpread(pool_, stream, transform, weight, block_moment);
  }

  absl::StatusOr<DeviceTensor> Submatrix(Stream& stream, const DeviceTensor& matrix,
                                         absl::Span<const int64_t> rows,
                                         absl::Span<const int64_t> columns) override {
    if (absl::Status status = CheckMatrix("matrix", matrix); !status.ok()) return status;
    absl::Status status = CheckIndices("rows", rows, matrix.dim(0));
    if (status.ok()) status = CheckIndices("columns", columns, matrix.dim(1));
    if (!status.ok()) return status;
    return CpuSubmatrix(pool_, stream, matrix, rows, columns);
  }

  absl::StatusOr<std::vector<double>> Diagonal(Stream& stream,
                                               const DeviceTensor& matrix) override {
    if (absl::Status status = CheckSquare("matrix", matrix); !status.ok()) return status;
    if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
    const int64_t size = matrix.dim(0);
    std::vector<double> diagonal(size);
    for (int64_t i = 0; i < size; ++i) diagonal[i] = Doubles(matrix)[i * size + i];
    return diagonal;
  }

  absl::StatusOr<std::vector<double>> ColumnEnergies(Stream& stream,
                                                     const DeviceTensor& matrix) override {
    if (absl::Status status = CheckMatrix("matrix", matrix); !status.ok()) return status;
    return CpuColumnEnergies(pool_, stream, matrix);
  }

  absl::StatusOr<MomentFactor> FactorMoment(Stream& stream, const DeviceTensor& moment,
                                            double added) override {
    if (absl::Status status = CheckSquare("second_moment", moment); !status.ok()) return status;
    return CpuFactorMoment(pool_, stream, moment, added);
  }

  absl::StatusOr<std::vector<double>> Eigenvalues(Stream& stream,
                                                  const DeviceTensor& matrix) override {
    if (absl::Status status = CheckSquare("matrix", matrix); !status.ok()) return status;
    std::vector<double> values = SymmetricEigenvalues(matrix.dim(0), Doubles(matrix));
    if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
    if (values.empty()) return absl::InternalError("eigenvalues: the iteration did not converge");
    return values;
  }

  absl::StatusOr<LatticeProblem> PrepareLattice(Stream& stream,
                                                const LatticeInputs& inputs) override {
    if (absl::Status status = CheckLattice(inputs); !status.ok()) return status;
    return CpuPrepareLattice(pool_, stream, inputs);
  }

  absl::StatusOr<LatticeCodes> CancelSuccessively(Stream& stream, const MomentFactor& factor,
                                                  const DeviceTensor& target,
                                                  double spacing) override {
    if (absl::Status status = CheckMatrix("target", target); !status.ok()) return status;
    absl::Status status = CheckShape("factor", factor.lower, target.dim(0), target.dim(0));
    if (!status.ok()) return status;
    if (!std::isnormal(spacing) || !std::isfinite(1.0 / spacing) || spacing < 0.0) {
      return absl::InvalidArgumentError(
          absl::StrCat("spacing: expected a positive number; got ", spacing));
    }
    return CpuCancelSuccessively(pool_, stream, factor, target, spacing);
  }

  absl::StatusOr<LatticeScales> FitLatticeScales(Stream& stream, const LatticeProblem& problem,
                                                 const LatticeCodes& codes,
                                                 const std::vector<double>& spacing) override {
    absl::Status status = CheckCodesOf(problem, codes.codes, spacing);
    if (status.ok()) status = CheckCount("gamma", codes.gamma.size(), codes.codes.dim(0));
    if (!status.ok()) return status;
    return CpuFitLatticeScales(pool_, stream, problem, codes, spacing);
  }

  absl::StatusOr<std::vector<double>> FitRowScales(
      Stream& stream, const LatticeProblem& problem, const DeviceTensor& codes,
      const std::vector<double>& column_scale) override {
    absl::Status status = CheckCodesOf(problem, codes, column_scale);
    if (!status.ok()) return status;
    return CpuFitRowScales(pool_, stream, problem, codes, column_scale);
  }

  absl::StatusOr<DeviceTensor> DecodeLattice(Stream& stream, const DeviceTensor& codes,
                                             const std::vector<double>& row_scale,
                                             const std::vector<double>& column_scale,
                                             absl::Span<const int64_t> columns,
                                             int64_t cols) override {
    if (absl::Status status = CheckCodes(codes); !status.ok()) return status;
    absl::Status status = CheckCount("row scales", row_scale.size(), codes.dim(1));
    if (status.ok()) status = CheckCount("column scales", column_scale.size(), codes.dim(0));
    if (status.ok()) {
      const auto named = columns.empty() ? cols : static_cast<int64_t>(columns.size());
      status = CheckCount("columns", static_cast<size_t>(codes.dim(0)), named);
    }
    if (status.ok()) status = CheckIndices("columns", columns, cols);
    if (!status.ok()) return status;
    return CpuDecodeLattice(pool_, stream, codes, row_scale, column_scale, columns, cols);
  }

  absl::StatusOr<OutputError> MeasureDriftError(Stream& stream, const DeviceTensor& weight,
                                                const DeviceTensor& dequantized,
                                                const DeviceTensor& moment,
                                                const DeviceTensor& moment_hat,
                                                const DeviceTensor& cross) override {
    if (absl::Status status = CheckMatrix("weight", weight); !status.ok()) return status;
    const int64_t cols = weight.dim(1);
    absl::Status status = CheckShape("dequantized", dequantized, weight.dim(0), cols);
    if (status.ok()) status = CheckShape("second_moment", moment, cols, cols);
    if (status.ok()) status = CheckShape("second_moment_hat", moment_hat, cols, cols);
    if (status.ok()) status = CheckShape("cross_moment", cross, cols, cols);
    if (!status.ok()) return status;
    return CpuMeasureDriftError(pool_, stream, weight, dequantized, moment, moment_hat, cross);
  }

 private:
  static absl::Status CheckGivenTransform(const Tensor& given, int64_t block_size, int64_t cols) {
    const std::vector<int64_t> shape = {cols / block_size, block_size, block_size};
    if (given.dtype() == DType::kF32 && given.shape() == shape) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("transform: expected F32 [", absl::StrJoin(shape, ", "), "]; got ",
                     NameOf(given.dtype()), " [", absl::StrJoin(given.shape(), ", "), "]"));
  }

  static absl::Status CheckSample(const DeviceTensor& sample, int64_t cols) {
    if (!sample.empty() && sample.shape().size() == 2 && sample.dim(0) >= 1 &&
        sample.dim(1) == cols) {
      return absl::OkStatus();
    }
    return WrongShape("sample", absl::StrCat("tokens x ", cols), sample);
  }

  static absl::Status CheckTransform(const BlockTransform& transform, int64_t cols) {
    if (transform.identity) return absl::OkStatus();
    const int64_t size = transform.block_size;
    for (const DeviceTensor* stack : {&transform.tx, &transform.tw}) {
      if (stack->empty() || size < 1 || cols % size != 0 ||
          stack->shape() != std::vector<int64_t>{cols / size, size, size}) {
        return WrongShape(
            "transform", absl::StrCat("blocks of ", size, " on the diagonal of ", cols, " columns"),
            *stack);
      }
    }
    return absl::OkStatus();
  }

  static absl::Status CheckSolverMoment(const TransformProblem& p) {
    const int64_t cols = p.weight.dim(1);
    const std::vector<int64_t> expected =
        p.solver == Solver::kConditional
            ? std::vector<int64_t>{cols, cols}
            : std::vector<int64_t>{cols / p.block_size, p.block_size, p.block_size};
    if (!p.second_moment.empty() && p.second_moment.shape() == expected) return absl::OkStatus();
    return WrongShape("second_moment", absl::StrCat("[", absl::StrJoin(expected, ", "), "]"),
                      p.second_moment);
  }

  static absl::Status StoreTransform(Stream& stream, const TransformProblem& p,
                                     HostTransform& solved, TransformSolution& solution) {
    const std::vector<int64_t> shape = {p.weight.dim(1) / p.block_size, p.block_size, p.block_size};
    absl::StatusOr<Tensor> tx =
        Tensor::FromBytes(DType::kF32, shape,
                          absl::MakeConstSpan(reinterpret_cast<const std::byte*>(solved.tx.data()),
                                              solved.tx.size() * sizeof(float)));
    if (!tx.ok()) return tx.status();
    absl::StatusOr<Tensor> tw =
        Tensor::FromBytes(DType::kF64, shape,
                          absl::MakeConstSpan(reinterpret_cast<const std::byte*>(solved.tw.data()),
                                              solved.tw.size() * sizeof(double)));
    if (!tw.ok()) return tw.status();
    solution.transform.tx = Adopt(stream, *std::move(tx));
    solution.transform.tw = Adopt(stream, *std::move(tw));
    solution.trace = std::move(solved.trace);
    solution.condition_max = solved.condition_max;
    solution.damped_blocks = solved.damped_blocks;
    solution.damping_max = solved.damping_max;
    return absl::OkStatus();
  }

  WorkerPool pool_;
};

}  // namespace

std::unique_ptr<Backend> NewCpuBackend(int threads) {
  return std::make_unique<CpuBackend>(threads);
}

}  // namespace quantd::compute
