#include "compute/backend/cuda/lattice_problem.h"

#include <utility>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/lattice_kernels.h"

namespace quantd::compute {
namespace {

// Builds the problem's matrices, C x R. To cuBLAS, which counts columns first, they are R x C like
// W itself, and row-major C x C matrices are transposed.
class Preparation {
 public:
  Preparation(CudaStream& stream, const LatticeInputs& inputs)
      : stream_(stream),
        inputs_(inputs),
        rows_(inputs.weight.dim(0)),
        cols_(inputs.weight.dim(1)) {}

  absl::StatusOr<LatticeProblem> Run() {
    absl::Status status = Transpose();
    if (status.ok()) status = Correlate();
    if (status.ok()) status = stream_.CheckCancelled();
    if (status.ok()) status = Target();
    if (!status.ok()) return status;
    const auto energy = CopyToHost(stream_, energy_.data(), 1);
    if (!energy.ok()) return energy.status();
    return LatticeProblem{
        .moment_hat = inputs_.moment_hat.empty() ? inputs_.moment : inputs_.moment_hat,
        .correlation = std::move(correlation_.tensor),
        .target = std::move(target_.tensor),
        .energy = energy->front()};
  }

 private:
  int64_t size() const { return rows_ * cols_; }

  absl::Status Transpose() {
    auto weight = DeviceBuffer<double>::Allocate(stream_, size());
    if (!weight.ok()) return weight.status();
    weight_ = *std::move(weight);
    return ToStatus(LaunchTranspose(stream_.get(), rows_, cols_, DeviceData<double>(inputs_.weight),
                                    /*add=*/false, weight_.data()),
                    "transposing the weight");
  }

  // to = W matrix, C x R.
  absl::Status Multiply(const DeviceTensor& matrix, double* to) {
    const double one = 1.0;
    const double zero = 0.0;
    return ToStatus(
        cublasDgemm_64(stream_.blas(), CUBLAS_OP_N, CUBLAS_OP_T, rows_, cols_, cols_, &one,
                       weight_.data(), rows_, DeviceData<double>(matrix), cols_, &zero, to, rows_),
        "correlating the weight");
  }

  // to = from L, or from L^T: half the work of a product with M.
  absl::Status MultiplyByFactor(const double* from, bool transposed, double* to) {
    const double one = 1.0;
    return ToStatus(cublasDtrmm_64(stream_.blas(), CUBLAS_SIDE_RIGHT, CUBLAS_FILL_MODE_UPPER,
                                   transposed ? CUBLAS_OP_N : CUBLAS_OP_T, CUBLAS_DIAG_NON_UNIT,
                                   rows_, cols_, &one, DeviceData<double>(inputs_.factor.lower),
                                   cols_, from, rows_, to, rows_),
                    "multiplying by the factor");
  }

  // W M = W L L^T - added W.
  absl::Status CorrelateByFactor() {
    absl::Status status = MultiplyByFactor(weight_.data(), /*transposed=*/false, target_.data);
    if (status.ok()) {
      status = MultiplyByFactor(target_.data, /*transposed=*/true, correlation_.data);
    }
    if (!status.ok()) return status;
    return ToStatus(LaunchAddScaled(stream_.get(), size(), correlation_.data, -inputs_.factor.added,
                                    weight_.data(), correlation_.data),
                    "undamping the correlation");
  }

  // K = W Mx + residual, and tr(W M W^T).
  absl::Status Correlate() {
    auto correlation = NewDoubles(stream_, {cols_, rows_});
    if (!correlation.ok()) return correlation.status();
    correlation_ = *std::move(correlation);
    auto target = NewDoubles(stream_, {cols_, rows_});
    if (!target.ok()) return target.status();
    target_ = *std::move(target);
    // Without drift the factor is M's.
    absl::Status status = inputs_.moment_hat.empty() ? CorrelateByFactor()
                                                     : Multiply(inputs_.moment, correlation_.data);
    if (status.ok()) status = MeasureEnergy();
    if (status.ok() && !inputs_.cross.empty()) status = Multiply(inputs_.cross, correlation_.data);
    if (status.ok() && !inputs_.residual.empty()) {
      status = ToStatus(
          LaunchTranspose(stream_.get(), rows_, cols_, DeviceData<double>(inputs_.residual),
                          /*add=*/true, correlation_.data),
          "adding the residual");
    }
    return status;
  }

  absl::Status MeasureEnergy() {
    auto sums = DeviceBuffer<double>::Allocate(stream_, kDotSlices + 1);
    if (!sums.ok()) return sums.status();
    energy_ = *std::move(sums);
    return ToStatus(LaunchDot(stream_.get(), size(), weight_.data(), correlation_.data,
                              energy_.data() + 1, energy_.data()),
                    "measuring the weight's energy");
  }

  absl::Status Target() {
    if (inputs_.moment_hat.empty() && inputs_.cross.empty() && inputs_.residual.empty()) {
      return absl::OkStatus();  // W L, on the way to K
    }
    const double* const lower = DeviceData<double>(inputs_.factor.lower);
    const double one = 1.0;
    absl::Status status =
        ToStatus(LaunchAddScaled(stream_.get(), size(), correlation_.data, inputs_.factor.added,
                                 weight_.data(), target_.data),
                 "damping the correlation");
    if (!status.ok()) return status;
    return ToStatus(
        cublasDtrsm_64(stream_.blas(), CUBLAS_SIDE_RIGHT, CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_N,
                       CUBLAS_DIAG_NON_UNIT, rows_, cols_, &one, lower, cols_, target_.data, rows_),
        "solving for the target");
  }

  CudaStream& stream_;
  const LatticeInputs& inputs_;
  const int64_t rows_;
  const int64_t cols_;
  DeviceBuffer<double> weight_;  // W, C x R
  DeviceBuffer<double> energy_;  // the energy, then what it is summed from
  NewTensor<double> correlation_;
  NewTensor<double> target_;
};

}  // namespace

absl::StatusOr<LatticeProblem> CudaPrepareLattice(CudaStream& stream, const LatticeInputs& inputs) {
  return Preparation(stream, inputs).Run();
}

absl::StatusOr<DeviceTensor> CudaDecodeLattice(CudaStream& stream, const DeviceTensor& codes,
                                               const std::vector<double>& row_scale,
                                               const std::vector<double>& column_scale,
                                               absl::Span<const int64_t> columns, int64_t cols) {
  const int64_t live = codes.dim(0);
  const int64_t rows = codes.dim(1);
  const auto row = Upload<double>(stream, row_scale);
  if (!row.ok()) return row.status();
  const auto column = Upload<double>(stream, column_scale);
  if (!column.ok()) return column.status();
  const auto list = Upload<int64_t>(stream, columns);
  if (!list.ok()) return list.status();
  absl::StatusOr<NewTensor<double>> to = NewDoubles(stream, {rows, cols});
  if (!to.ok()) return to.status();
  absl::Status status;
  if (live < cols) {
    status =
        ToStatus(cudaMemsetAsync(to->data, 0, static_cast<size_t>(rows * cols) * sizeof(double),
                                 stream.get()),
                 "clearing dead columns");
  }
  if (status.ok()) {
    status = ToStatus(LaunchDecodeLattice(stream.get(), live, rows, DeviceData<int32_t>(codes),
                                          row->data(), column->data(),
                                          columns.empty() ? nullptr : list->data(), cols, to->data),
                      "decoding the lattice");
  }
  if (!status.ok()) return status;
  return std::move(to->tensor);
}

}  // namespace quantd::compute
