#include "compute/backend/cpu/cpu_backend.h"

#include <unistd.h>

#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/eigenvalues.h"
#include "compute/backend/cpu/host_memory.h"
#include "compute/backend/cpu/lattice_codes.h"
#include "compute/backend/cpu/lattice_problem.h"
#include "compute/backend/cpu/lattice_scales.h"
#include "compute/backend/cpu/measure.h"
#include "compute/backend/cpu/moment_accumulator.h"
#include "compute/backend/cpu/round_to_nearest.h"
#include "compute/backend/cpu/solve_gptq.h"
#include "compute/backend/cpu/transform_solver.h"
#include "compute/backend/cpu/worker_pool.h"
#include "compute/backend/operands.h"

namespace quantd::compute {
namespace {

constexpr double kFlopsPerThread = 1e10;  // of a whole layer, roughly

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
            .used_bytes = ResidentBytes(),
            .flops_per_second = kFlopsPerThread * pool_.threads()};
  }

  // Every op of the contract takes every format and transform here.
  absl::Status Supports(const Recipe& /*resolved*/) const override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<Stream>> NewStream(const CancelFlag* cancel) override {
    return std::make_unique<CpuStream>(cancel);
  }

  absl::StatusOr<DeviceTensor> Upload(Stream& stream, const Tensor& tensor) override {
    if (absl::Status status = operands::CheckUpload(tensor); !status.ok()) return status;
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
    if (absl::Status status = operands::CheckSliceRows(matrix, first, rows); !status.ok())
      return status;
    if (rows == matrix.dim(0)) return matrix;
    absl::StatusOr<WritableTensor> to = NewMatrix(stream, {rows, matrix.dim(1)});
    if (!to.ok()) return to.status();
    const int64_t cols = matrix.dim(1);
    std::copy_n(Doubles(matrix) + first * cols, rows * cols, to->data);
    return to->tensor;
  }

  absl::StatusOr<DeviceTensor> UploadMean(Stream& stream, const SecondMoment& moment) override {
    const MomentSpec& spec = moment.spec();
    absl::StatusOr<Tensor> mean = spec.layout == MomentLayout::kFull
                                      ? moment.FullMean()
                                      : moment.BlockDiagonalMean(spec.block_size);
    if (!mean.ok()) return mean.status();
    return Adopt(stream, *std::move(mean));
  }

  absl::StatusOr<DeviceTensor> DiagonalBlocks(Stream& stream, const DeviceTensor& moment,
                                              int64_t size) override {
    absl::Status status = operands::CheckDiagonalBlocks(moment, size);
    if (!status.ok()) return status;
    const int64_t width = moment.shape().back();
    const int64_t cols = moment.shape().size() == 2 ? width : moment.dim(0) * width;
    absl::StatusOr<WritableTensor> to = NewMatrix(stream, {cols / size, size, size});
    if (!to.ok()) return to.status();
    for (int64_t row = 0; row < cols; ++row) {
      const int64_t first = row / size * size;  // column of the block
      const double* from = Doubles(moment) + row * width + first % width;
      std::copy_n(from, size, to->data + row * size);
    }
    return to->tensor;
  }

  absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewAccumulator(
      const MomentSpec& spec, const SecondMoment* start) override {
    return NewCpuMomentAccumulator(pool_, spec, start);
  }

  absl::StatusOr<TransformSolution> SolveTransforms(Stream& stream,
                                                    const TransformProblem& p) override {
    if (absl::Status status = operands::CheckTransformProblem(p); !status.ok()) return status;
    TransformSolution solution;
    solution.transform.block_size = p.block_size;
    if (p.kind == TransformKind::kIdentity) {
      solution.transform.identity = true;
      return solution;
    }
    BlockTransformProblem host = {.kind = p.kind,
                                  .solver = p.solver,
                                  .block_size = p.block_size,
                                  .damping = p.damping,
                                  .seed = p.seed,
                                  .rows = p.weight.dim(0),
                                  .cols = p.weight.dim(1),
                                  .weight = HostTensor(p.weight).as<double>(),
                                  .second_moment = {},
                                  .stream = &stream};
    if (IsDataAware(p.kind)) {
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
    if (absl::Status status = operands::CheckRoundToNearest(transform, weight); !status.ok())
      return status;
    return CpuRoundToNearest(pool_, stream, format, transform, weight);
  }

  absl::StatusOr<GptqSolution> SolveGptq(Stream& stream, const NumberFormat& format,
                                         const GptqProblem& problem) override {
    if (absl::Status status = operands::CheckGptqProblem(problem); !status.ok()) return status;
    return CpuSolveGptq(pool_, stream, format, problem);
  }

  absl::StatusOr<WeightError> MeasureWeightError(Stream& stream, const DeviceTensor& weight,
                                                 const DeviceTensor& dequantized,
                                                 const DeviceTensor& second_moment,
                                                 ErrorDetail detail) override {
    if (absl::Status status = operands::CheckWeightError(weight, dequantized, second_moment);
        !status.ok())
      return status;
    return CpuMeasureWeightError(pool_, stream, weight, dequantized, second_moment, detail);
  }

  absl::StatusOr<DeviceTensor> ComputeOutputs(Stream& stream, const DeviceTensor& weight,
                                              const DeviceTensor& sample) override {
    if (absl::Status status = operands::CheckOutputs(weight, sample); !status.ok()) return status;
    return CpuComputeOutputs(pool_, stream, weight, sample);
  }

  absl::StatusOr<OutputError> MeasureOutputError(Stream& stream, const NumberFormat& format,
                                                 const BlockTransform& transform,
                                                 const DeviceTensor& decoded,
                                                 const DeviceTensor& sample,
                                                 const DeviceTensor& outputs) override {
    if (absl::Status status = operands::CheckOutputError(transform, decoded, sample, outputs);
        !status.ok())
      return status;
    return CpuMeasureOutputError(pool_, stream, format, transform, decoded, sample, outputs);
  }

  absl::StatusOr<double> MeasureSpread(Stream& stream, const BlockTransform& transform,
                                       const DeviceTensor& weight,
                                       const DeviceTensor& block_moment) override {
    if (absl::Status status = operands::CheckSpread(transform, weight, block_moment); !status.ok())
      return status;
    return CpuMeasureSpread(pool_, stream, transform, weight, block_moment);
  }

  absl::StatusOr<DeviceTensor> Submatrix(Stream& stream, const DeviceTensor& matrix,
                                         absl::Span<const int64_t> rows,
                                         absl::Span<const int64_t> columns) override {
    if (absl::Status status = operands::CheckSubmatrix(matrix, rows, columns); !status.ok())
      return status;
    return CpuSubmatrix(pool_, stream, matrix, rows, columns);
  }

  absl::StatusOr<std::vector<double>> Diagonal(Stream& stream,
                                               const DeviceTensor& matrix) override {
    if (absl::Status status = operands::CheckSquare(matrix); !status.ok()) return status;
    if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
    const int64_t size = matrix.dim(0);
    std::vector<double> diagonal(size);
    for (int64_t i = 0; i < size; ++i) diagonal[i] = Doubles(matrix)[i * size + i];
    return diagonal;
  }

  absl::StatusOr<std::vector<double>> ColumnEnergies(Stream& stream,
                                                     const DeviceTensor& matrix) override {
    if (absl::Status status = operands::CheckMatrix(matrix); !status.ok()) return status;
    return CpuColumnEnergies(pool_, stream, matrix);
  }

  absl::StatusOr<std::vector<double>> RowEnergies(Stream& stream,
                                                  const DeviceTensor& matrix) override {
    if (absl::Status status = operands::CheckMatrix(matrix); !status.ok()) return status;
    return CpuRowEnergies(pool_, stream, matrix);
  }

  absl::StatusOr<MomentFactor> FactorMoment(Stream& stream, const DeviceTensor& moment,
                                            double added) override {
    if (absl::Status status = operands::CheckMoment(moment); !status.ok()) return status;
    return CpuFactorMoment(pool_, stream, moment, added);
  }

  absl::StatusOr<std::vector<double>> Eigenvalues(Stream& stream,
                                                  const DeviceTensor& matrix) override {
    if (absl::Status status = operands::CheckSquare(matrix); !status.ok()) return status;
    absl::StatusOr<std::vector<double>> values =
        SymmetricEigenvalues(matrix.dim(0), Doubles(matrix), &stream);
    if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
    return values;
  }

  absl::StatusOr<LatticeProblem> PrepareLattice(Stream& stream,
                                                const LatticeInputs& inputs) override {
    if (absl::Status status = operands::CheckLattice(inputs); !status.ok()) return status;
    return CpuPrepareLattice(pool_, stream, inputs);
  }

  absl::StatusOr<LatticeCodes> CancelSuccessively(Stream& stream, const MomentFactor& factor,
                                                  const DeviceTensor& target,
                                                  double spacing) override {
    if (absl::Status status = operands::CheckCancellation(factor, target, spacing); !status.ok())
      return status;
    return CpuCancelSuccessively(pool_, stream, factor, target, spacing);
  }

  absl::StatusOr<CodeCounts> CountCodes(Stream& stream, const DeviceTensor& codes, int64_t first,
                                        int64_t rows) override {
    if (absl::Status status = operands::CheckCodeRows(codes, first, rows); !status.ok())
      return status;
    return CpuCountCodes(pool_, stream, codes, first, rows);
  }

  absl::StatusOr<CodedIntegers> EncodeCodes(Stream& stream, const DeviceTensor& codes,
                                            int64_t first, int64_t rows,
                                            const CodingModel& model) override {
    if (absl::Status status = operands::CheckEncodeCodes(codes, first, rows, model); !status.ok())
      return status;
    return CpuEncodeCodes(stream, codes, first, rows, model);
  }

  absl::StatusOr<DeviceTensor> DecodeCodes(Stream& stream, const CodedIntegersView& coded,
                                           int64_t rows, int64_t cols) override {
    return CpuDecodeCodes(stream, coded, rows, cols);
  }

  absl::StatusOr<LatticeScales> FitLatticeScales(Stream& stream, const LatticeProblem& problem,
                                                 const LatticeCodes& codes,
                                                 const std::vector<double>& spacing) override {
    if (absl::Status status = operands::CheckFitLatticeScales(problem, codes, spacing);
        !status.ok())
      return status;
    return CpuFitLatticeScales(pool_, stream, problem, codes, spacing);
  }

  absl::StatusOr<std::vector<double>> FitRowScales(
      Stream& stream, const LatticeProblem& problem, const DeviceTensor& codes,
      const std::vector<double>& column_scale) override {
    if (absl::Status status = operands::CheckLatticeCodes(problem, codes, column_scale);
        !status.ok())
      return status;
    return CpuFitRowScales(pool_, stream, problem, codes, column_scale);
  }

  absl::StatusOr<DeviceTensor> DecodeLattice(Stream& stream, const DeviceTensor& codes,
                                             const std::vector<double>& row_scale,
                                             const std::vector<double>& column_scale,
                                             absl::Span<const int64_t> columns,
                                             int64_t cols) override {
    if (absl::Status status =
            operands::CheckDecodeLattice(codes, row_scale, column_scale, columns, cols);
        !status.ok())
      return status;
    return CpuDecodeLattice(pool_, stream, codes, row_scale, column_scale, columns, cols);
  }

  absl::StatusOr<OutputError> MeasureDriftError(Stream& stream, const DeviceTensor& weight,
                                                const DeviceTensor& dequantized,
                                                const DeviceTensor& moment,
                                                const DeviceTensor& moment_hat,
                                                const DeviceTensor& cross) override {
    if (absl::Status status =
            operands::CheckDriftError(weight, dequantized, moment, moment_hat, cross);
        !status.ok())
      return status;
    return CpuMeasureDriftError(pool_, stream, weight, dequantized, moment, moment_hat, cross);
  }

 private:
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
