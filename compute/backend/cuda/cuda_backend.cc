#include "compute/backend/cuda/cuda_backend.h"

#include <array>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_device.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/backend/cuda/device_monitor.h"
#include "compute/backend/cuda/gptq_solver.h"
#include "compute/backend/cuda/ipc_region.h"
#include "compute/backend/cuda/lattice_codes.h"
#include "compute/backend/cuda/lattice_problem.h"
#include "compute/backend/cuda/lattice_scales.h"
#include "compute/backend/cuda/matrix.h"
#include "compute/backend/cuda/measure.h"
#include "compute/backend/cuda/moment_accumulator.h"
#include "compute/backend/cuda/moment_factor.h"
#include "compute/backend/cuda/round_to_nearest.h"
#include "compute/backend/cuda/solve_transforms.h"
#include "compute/backend/cuda/statistic_mean.h"
#include "compute/backend/cuda/successive_cancellation.h"
#include "compute/backend/operands.h"

namespace quantd::compute {
namespace {

constexpr double kFlopsPerSecond = 2e13;  // of a whole layer, roughly

// As nvidia-smi and NVML write it.
std::string UuidText(const cudaUUID_t& uuid) {
  const std::string hex = absl::BytesToHexString(absl::string_view(uuid.bytes, sizeof(uuid.bytes)));
  return absl::StrCat("GPU-", hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-",
                      hex.substr(16, 4), "-", hex.substr(20));
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device, const cudaDeviceProp& properties, const std::string& pci_bus_id,
              int cpu_threads)
      : device_(device, cpu_threads),
        description_(absl::StrCat(properties.name, ", compute capability ", properties.major, ".",
                                  properties.minor)),
        uuid_(UuidText(properties.uuid)),
        monitor_(pci_bus_id) {}

  DeviceInfo Describe() const override {
    DeviceInfo info = {.name = absl::StrCat("cuda:", device_.id()),
                       .description = description_,
                       .flops_per_second = kFlopsPerSecond,
                       .uuid = uuid_};
    size_t free = 0;
    size_t total = 0;
    if (cudaSetDevice(device_.id()) == cudaSuccess &&
        cudaMemGetInfo(&free, &total) == cudaSuccess) {
      info.memory_bytes = static_cast<int64_t>(total);
      info.used_bytes = static_cast<int64_t>(total - free);
    }
    return info;
  }

  DeviceActivity Activity() const override { return monitor_.Read(); }

  absl::Status Supports(const Recipe& /*resolved*/) const override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<Stream>> NewStream(const CancelFlag* cancel) override {
    return CudaStream::Create(device_, cancel);
  }

  absl::StatusOr<DeviceTensor> Upload(Stream& stream, const Tensor& tensor) override {
    auto cuda = Enter(stream, operands::CheckUpload(tensor));
    if (!cuda.ok()) return cuda.status();
    return CudaUpload(**cuda, tensor);
  }

  absl::StatusOr<Tensor> Download(Stream& stream, const DeviceTensor& tensor) override {
    auto cuda = Enter(stream, absl::OkStatus());
    if (!cuda.ok()) return cuda.status();
    return CudaDownload(**cuda, tensor);
  }

  absl::StatusOr<DeviceTensor> SliceRows(Stream& stream, const DeviceTensor& matrix, int64_t first,
                                         int64_t rows) override {
    auto cuda = Enter(stream, operands::CheckSliceRows(matrix, first, rows));
    if (!cuda.ok()) return cuda.status();
    return CudaSliceRows(**cuda, matrix, first, rows);
  }

  absl::StatusOr<DeviceTensor> UploadMean(Stream& stream, const SecondMoment& moment) override {
    auto cuda = Enter(stream, moment.CheckUsable());
    if (!cuda.ok()) return cuda.status();
    return CudaUploadMean(**cuda, moment);
  }

  absl::StatusOr<DeviceTensor> DiagonalBlocks(Stream& stream, const DeviceTensor& moment,
                                              int64_t block_size) override {
    auto cuda = Enter(stream, operands::CheckDiagonalBlocks(moment, block_size));
    if (!cuda.ok()) return cuda.status();
    return CudaDiagonalBlocks(**cuda, moment, block_size);
  }

  absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewAccumulator(
      const MomentSpec& spec, const SecondMoment* start) override {
    return NewCudaAccumulator(device_, spec, start);
  }

  absl::StatusOr<std::unique_ptr<DeviceRegion>> OpenRegion(absl::string_view handle,
                                                           int64_t bytes) override {
    return OpenIpcRegion(device_, handle, bytes);
  }

  absl::StatusOr<TransformSolution> SolveTransforms(Stream& stream,
                                                    const TransformProblem& problem) override {
    auto cuda = Enter(stream, operands::CheckTransformProblem(problem));
    if (!cuda.ok()) return cuda.status();
    return CudaSolveTransforms(**cuda, problem);
  }

  absl::StatusOr<QuantizedWeight> RoundToNearest(Stream& stream, const NumberFormat& format,
                                                 const BlockTransform& transform,
                                                 const DeviceTensor& weight) override {
    auto cuda = Enter(stream, operands::CheckRoundToNearest(transform, weight));
    if (!cuda.ok()) return cuda.status();
    return CudaRoundToNearest(**cuda, format, transform, weight);
  }

  absl::StatusOr<GptqSolution> SolveGptq(Stream& stream, const NumberFormat& format,
                                         const GptqProblem& problem) override {
    auto cuda = Enter(stream, operands::CheckGptqProblem(problem));
    if (!cuda.ok()) return cuda.status();
    return CudaSolveGptq(**cuda, format, problem);
  }

  absl::StatusOr<WeightError> MeasureWeightError(Stream& stream, const DeviceTensor& weight,
                                                 const DeviceTensor& dequantized,
                                                 const DeviceTensor& second_moment,
                                                 ErrorDetail detail) override {
    auto cuda = Enter(stream, operands::CheckWeightError(weight, dequantized, second_moment));
    if (!cuda.ok()) return cuda.status();
    return CudaMeasureWeightError(**cuda, weight, dequantized, second_moment, detail);
  }

  absl::StatusOr<DeviceTensor> ComputeOutputs(Stream& stream, const DeviceTensor& weight,
                                              const DeviceTensor& sample) override {
    auto cuda = Enter(stream, operands::CheckOutputs(weight, sample));
    if (!cuda.ok()) return cuda.status();
    return CudaComputeOutputs(**cuda, weight, sample);
  }

  absl::StatusOr<OutputError> MeasureOutputError(Stream& stream, const NumberFormat& format,
                                                 const BlockTransform& transform,
                                                 const DeviceTensor& decoded,
                                                 const DeviceTensor& sample,
                                                 const DeviceTensor& outputs) override {
    auto cuda = Enter(stream, operands::CheckOutputError(transform, decoded, sample, outputs));
    if (!cuda.ok()) return cuda.status();
    return CudaMeasureOutputError(**cuda, format, transform, decoded, sample, outputs);
  }

  absl::StatusOr<double> MeasureSpread(Stream& stream, const BlockTransform& transform,
                                       const DeviceTensor& weight,
                                       const DeviceTensor& block_moment) override {
    auto cuda = Enter(stream, operands::CheckSpread(transform, weight, block_moment));
    if (!cuda.ok()) return cuda.status();
    return CudaMeasureSpread(**cuda, transform, weight, block_moment);
  }

  absl::StatusOr<DeviceTensor> Submatrix(Stream& stream, const DeviceTensor& matrix,
                                         absl::Span<const int64_t> rows,
                                         absl::Span<const int64_t> columns) override {
    auto cuda = Enter(stream, operands::CheckSubmatrix(matrix, rows, columns));
    if (!cuda.ok()) return cuda.status();
    return CudaSubmatrix(**cuda, matrix, rows, columns);
  }

  absl::StatusOr<std::vector<double>> Diagonal(Stream& stream,
                                               const DeviceTensor& matrix) override {
    auto cuda = Enter(stream, operands::CheckSquare(matrix));
    if (!cuda.ok()) return cuda.status();
    return CudaDiagonal(**cuda, matrix);
  }

  absl::StatusOr<std::vector<double>> ColumnEnergies(Stream& stream,
                                                     const DeviceTensor& matrix) override {
    auto cuda = Enter(stream, operands::CheckMatrix(matrix));
    if (!cuda.ok()) return cuda.status();
    return CudaColumnEnergies(**cuda, matrix);
  }

  absl::StatusOr<std::vector<double>> RowEnergies(Stream& stream,
                                                  const DeviceTensor& matrix) override {
    auto cuda = Enter(stream, operands::CheckMatrix(matrix));
    if (!cuda.ok()) return cuda.status();
    return CudaRowEnergies(**cuda, matrix);
  }

  absl::StatusOr<MomentFactor> FactorMoment(Stream& stream, const DeviceTensor& moment,
                                            double added) override {
    auto cuda = Enter(stream, operands::CheckMoment(moment));
    if (!cuda.ok()) return cuda.status();
    return CudaFactorMoment(**cuda, moment, added);
  }

  absl::StatusOr<std::vector<double>> Eigenvalues(Stream& stream,
                                                  const DeviceTensor& matrix) override {
    auto cuda = Enter(stream, operands::CheckSquare(matrix));
    if (!cuda.ok()) return cuda.status();
    return CudaEigenvalues(**cuda, matrix);
  }

  absl::StatusOr<LatticeProblem> PrepareLattice(Stream& stream,
                                                const LatticeInputs& inputs) override {
    auto cuda = Enter(stream, operands::CheckLattice(inputs));
    if (!cuda.ok()) return cuda.status();
    return CudaPrepareLattice(**cuda, inputs);
  }

  absl::StatusOr<LatticeCodes> CancelSuccessively(Stream& stream, const MomentFactor& factor,
                                                  const DeviceTensor& target,
                                                  double spacing) override {
    auto cuda = Enter(stream, operands::CheckCancellation(factor, target, spacing));
    if (!cuda.ok()) return cuda.status();
    return CudaCancelSuccessively(**cuda, factor, target, spacing);
  }

  absl::StatusOr<CodeCounts> CountCodes(Stream& stream, const DeviceTensor& codes, int64_t first,
                                        int64_t rows) override {
    auto cuda = Enter(stream, operands::CheckCodeRows(codes, first, rows));
    if (!cuda.ok()) return cuda.status();
    return CudaCountCodes(**cuda, codes, first, rows);
  }

  absl::StatusOr<CodedIntegers> EncodeCodes(Stream& stream, const DeviceTensor& codes,
                                            int64_t first, int64_t rows,
                                            const CodingModel& model) override {
    auto cuda = Enter(stream, operands::CheckEncodeCodes(codes, first, rows, model));
    if (!cuda.ok()) return cuda.status();
    return CudaEncodeCodes(**cuda, codes, first, rows, model);
  }

  absl::StatusOr<DeviceTensor> DecodeCodes(Stream& stream, const CodedIntegersView& coded,
                                           int64_t rows, int64_t cols) override {
    auto cuda = Enter(stream, absl::OkStatus());
    if (!cuda.ok()) return cuda.status();
    return CudaDecodeCodes(**cuda, coded, rows, cols);
  }

  absl::StatusOr<LatticeScales> FitLatticeScales(Stream& stream, const LatticeProblem& problem,
                                                 const LatticeCodes& codes,
                                                 const std::vector<double>& spacing) override {
    auto cuda = Enter(stream, operands::CheckFitLatticeScales(problem, codes, spacing));
    if (!cuda.ok()) return cuda.status();
    return CudaFitLatticeScales(**cuda, problem, codes, spacing);
  }

  absl::StatusOr<std::vector<double>> FitRowScales(
      Stream& stream, const LatticeProblem& problem, const DeviceTensor& codes,
      const std::vector<double>& column_scale) override {
    auto cuda = Enter(stream, operands::CheckLatticeCodes(problem, codes, column_scale));
    if (!cuda.ok()) return cuda.status();
    return CudaFitRowScales(**cuda, problem, codes, column_scale);
  }

  absl::StatusOr<DeviceTensor> DecodeLattice(Stream& stream, const DeviceTensor& codes,
                                             const std::vector<double>& row_scale,
                                             const std::vector<double>& column_scale,
                                             absl::Span<const int64_t> columns,
                                             int64_t cols) override {
    auto cuda =
        Enter(stream, operands::CheckDecodeLattice(codes, row_scale, column_scale, columns, cols));
    if (!cuda.ok()) return cuda.status();
    return CudaDecodeLattice(**cuda, codes, row_scale, column_scale, columns, cols);
  }

  absl::StatusOr<OutputError> MeasureDriftError(Stream& stream, const DeviceTensor& weight,
                                                const DeviceTensor& dequantized,
                                                const DeviceTensor& moment,
                                                const DeviceTensor& moment_hat,
                                                const DeviceTensor& cross) override {
    auto cuda =
        Enter(stream, operands::CheckDriftError(weight, dequantized, moment, moment_hat, cross));
    if (!cuda.ok()) return cuda.status();
    return CudaMeasureDriftError(**cuda, weight, dequantized, moment, moment_hat, cross);
  }

 private:
  // Every op begins here: operands fit, the layer is not cancelled, the device is this thread's.
  static absl::StatusOr<CudaStream*> Enter(Stream& stream, absl::Status operands) {
    if (!operands.ok()) return operands;
    auto& cuda = static_cast<CudaStream&>(stream);
    if (absl::Status status = cuda.Enter(); !status.ok()) return status;
    return &cuda;
  }

  CudaDevice device_;
  const std::string description_;
  const std::string uuid_;
  const DeviceMonitor monitor_;
};

}  // namespace

int CountCudaDevices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

absl::StatusOr<std::unique_ptr<Backend>> NewCudaBackend(int device, int cpu_threads) {
  cudaDeviceProp properties;
  absl::Status status =
      ToStatus(cudaGetDeviceProperties(&properties, device), "reading the CUDA device");
  std::array<char, 32> bus_id = {};
  if (status.ok()) {
    status = ToStatus(cudaDeviceGetPCIBusId(bus_id.data(), bus_id.size(), device),
                      "reading the CUDA device's PCI bus id");
  }
  if (!status.ok()) return absl::FailedPreconditionError(status.message());
  return std::make_unique<CudaBackend>(device, properties, bus_id.data(), cpu_threads);
}

}  // namespace quantd::compute
