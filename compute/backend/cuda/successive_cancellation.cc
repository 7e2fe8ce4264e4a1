#include "compute/backend/cuda/successive_cancellation.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/successive_cancellation_kernels.h"

namespace quantd::compute {
namespace {

// Queues the cancellation of all columns; `panel` says of what, with begin and width unset.
class Cancellation {
 public:
  Cancellation(CudaStream& stream, const CancelPlan& plan, const CancelPanel& panel)
      : stream_(stream), plan_(plan), panel_(panel) {}

  // Columns [begin, end), whose targets hold all that later columns left.
  absl::Status Run(int64_t begin, int64_t end) {
    if (end - begin <= plan_.panel) return RunPanel(begin, end);
    // Whole panels to the right.
    const int64_t half = ((end - begin) / 2 + plan_.panel - 1) / plan_.panel * plan_.panel;
    const int64_t middle = end - half;
    absl::Status status = Run(middle, end);
    if (status.ok()) status = Subtract(begin, middle, end);
    if (status.ok()) status = Run(begin, middle);
    return status;
  }

 private:
  absl::Status RunPanel(int64_t begin, int64_t end) {
    if (absl::Status status = stream_.CheckCancelled(); !status.ok()) return status;
    panel_.begin = begin;
    panel_.width = static_cast<int>(end - begin);
    return ToStatus(LaunchCancelPanel(stream_.get(), plan_, panel_), "cancelling columns");
  }

  // What columns [middle, end) contribute to the targets of [begin, middle). cuBLAS reads the
  // transposed matrices: Y^T (rows x columns) -= done^T L.
  absl::Status Subtract(int64_t begin, int64_t middle, int64_t end) {
    const double minus = -1.0;
    const double one = 1.0;
    return ToStatus(
        cublasDgemm_64(stream_.blas(), CUBLAS_OP_N, CUBLAS_OP_T, panel_.rows, middle - begin,
                       end - middle, &minus, panel_.target + middle * panel_.rows, panel_.rows,
                       panel_.lower + middle * panel_.cols + begin, panel_.cols, &one,
                       panel_.target + begin * panel_.rows, panel_.rows),
        "subtracting cancelled columns");
  }

  CudaStream& stream_;
  const CancelPlan plan_;
  CancelPanel panel_;
};

// What a pass came to, on the device: the codes, and beside them scratch.
struct Pass {
  NewTensor<int32_t> codes;
  DeviceBuffer<double> target;  // a copy, which is overwritten
  DeviceBuffer<double> gamma;
  DeviceBuffer<double> sums;
  DeviceBuffer<int> too_large;

  static absl::StatusOr<Pass> Make(CudaStream& stream, const CancelPlan& plan, int64_t cols,
                                   int64_t rows) {
    auto codes = NewDeviceTensor<int32_t>(stream, DType::kI32, {cols, rows});
    if (!codes.ok()) return codes.status();
    auto target = DeviceBuffer<double>::Allocate(stream, cols * rows);
    if (!target.ok()) return target.status();
    auto gamma = DeviceBuffer<double>::Allocate(stream, cols);
    if (!gamma.ok()) return gamma.status();
    auto sums = DeviceBuffer<double>::Allocate(stream, plan.Sums(cols));
    if (!sums.ok()) return sums.status();
    auto too_large = DeviceBuffer<int>::Allocate(stream, 1);
    if (!too_large.ok()) return too_large.status();
    return Pass{*std::move(codes), *std::move(target), *std::move(gamma), *std::move(sums),
                *std::move(too_large)};
  }

  absl::Status Begin(CudaStream& stream, const DeviceTensor& from) const {
    const auto bytes = [](int64_t count, size_t size) { return static_cast<size_t>(count) * size; };
    cudaError_t code = cudaMemcpyAsync(target.data(), DeviceData<double>(from),
                                       bytes(target.size(), sizeof(double)),
                                       cudaMemcpyDeviceToDevice, stream.get());
    if (code == cudaSuccess) {
      code = cudaMemsetAsync(sums.data(), 0xff, bytes(sums.size(), sizeof(double)), stream.get());
    }
    if (code == cudaSuccess) {
      code = cudaMemsetAsync(too_large.data(), 0, sizeof(int), stream.get());
    }
    return ToStatus(code, "preparing the cancellation");
  }
};

absl::Status TooLarge(double spacing) {
  return absl::OutOfRangeError(
      absl::StrCat("spacing ", spacing, ": expected codes within +-2^30; got larger ones"));
}

absl::StatusOr<CancelPlan> PlanFor(CudaStream& stream, int64_t rows) {
  CancelPlan plan;
  if (PlanClusterCancellation(stream.device().id(), rows, &plan)) return plan;
  absl::Status status = ToStatus(PlanGridCancellation(stream.device().id(), rows, &plan),
                                 "planning the cancellation");
  if (!status.ok()) return status;
  if (plan.blocks > 0) return plan;
  return absl::ResourceExhaustedError(
      absl::StrCat("weight: expected fewer rows, which this device holds at one time; got ", rows));
}

}  // namespace

absl::StatusOr<LatticeCodes> CudaCancelSuccessively(CudaStream& stream, const MomentFactor& factor,
                                                    const DeviceTensor& target, double spacing) {
  const int64_t cols = target.dim(0);
  const int64_t rows = target.dim(1);
  const absl::StatusOr<CancelPlan> plan = PlanFor(stream, rows);
  if (!plan.ok()) return plan.status();
  absl::StatusOr<Pass> pass = Pass::Make(stream, *plan, cols, rows);
  if (!pass.ok()) return pass.status();
  absl::Status status = pass->Begin(stream, target);
  if (status.ok()) {
    status = Cancellation(stream, *plan,
                          {.rows = rows,
                           .cols = cols,
                           .begin = 0,
                           .width = 0,
                           .spacing = spacing,
                           .lower = DeviceData<double>(factor.lower),
                           .target = pass->target.data(),
                           .codes = pass->codes.data,
                           .gamma = pass->gamma.data(),
                           .too_large = pass->too_large.data(),
                           .sums = pass->sums.data()})
                 .Run(0, cols);
  }
  if (!status.ok()) return status;
  const auto too_large = CopyToHost(stream, pass->too_large.data(), 1);
  if (!too_large.ok()) return too_large.status();
  if (too_large->front() != 0) return TooLarge(spacing);
  absl::StatusOr<std::vector<double>> gamma = CopyToHost(stream, pass->gamma.data(), cols);
  if (!gamma.ok()) return gamma.status();
  return LatticeCodes{.codes = std::move(pass->codes.tensor), .gamma = *std::move(gamma)};
}

}  // namespace quantd::compute
