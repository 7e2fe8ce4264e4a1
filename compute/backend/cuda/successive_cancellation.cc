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

// Scratch of a pass on the device.
struct Scratch {
  DeviceBuffer<double> target;  // a copy, which is overwritten
  DeviceBuffer<double> gamma;
  DeviceBuffer<double> sums;
  DeviceBuffer<int> too_large;

  static absl::StatusOr<Scratch> Make(CudaStream& stream, const CancelPlan& plan,
                                      const DeviceTensor& target) {
    const int64_t cols = target.dim(0);
    const int64_t size = cols * target.dim(1);
    auto copy = DeviceBuffer<double>::Allocate(stream, size);
    if (!copy.ok()) return copy.status();
    auto gamma = DeviceBuffer<double>::Allocate(stream, cols);
    if (!gamma.ok()) return gamma.status();
    auto sums = DeviceBuffer<double>::Allocate(stream, plan.Sums(cols));
    if (!sums.ok()) return sums.status();
    auto too_large = DeviceBuffer<int>::Allocate(stream, 1);
    if (!too_large.ok()) return too_large.status();
    absl::Status status = ToStatus(cudaMemcpyAsync(copy->data(), DeviceData<double>(target),
                                                   static_cast<size_t>(size) * sizeof(double),
                                                   cudaMemcpyDeviceToDevice, stream.get()),
                                   "copying the target");
    if (status.ok()) {
      status = ToStatus(
          cudaMemsetAsync(sums->data(), 0xff, static_cast<size_t>(sums->size()) * sizeof(double),
                          stream.get()),
          "clearing sums");
    }
    if (status.ok()) {
      status = ToStatus(cudaMemsetAsync(too_large->data(), 0, sizeof(int), stream.get()),
                        "clearing a flag");
    }
    if (!status.ok()) return status;
    return Scratch{*std::move(copy), *std::move(gamma), *std::move(sums), *std::move(too_large)};
  }
};

}  // namespace

absl::StatusOr<LatticeCodes> CudaCancelSuccessively(CudaStream& stream, const MomentFactor& factor,
                                                    const DeviceTensor& target, double spacing) {
  const int64_t cols = target.dim(0);
  const int64_t rows = target.dim(1);
  CancelPlan plan;
  absl::Status status =
      ToStatus(PlanCancellation(stream.device(), rows, &plan), "planning the cancellation");
  if (!status.ok()) return status;
  if (plan.blocks == 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "weight: expected fewer rows, which this device holds at one time; got ", rows));
  }
  auto codes = NewDeviceTensor<int32_t>(stream, DType::kI32, {cols, rows});
  if (!codes.ok()) return codes.status();
  const absl::StatusOr<Scratch> scratch = Scratch::Make(stream, plan, target);
  if (!scratch.ok()) return scratch.status();
  status = Cancellation(stream, plan,
                        {.rows = rows,
                         .cols = cols,
                         .begin = 0,
                         .width = 0,
                         .spacing = spacing,
                         .lower = DeviceData<double>(factor.lower),
                         .target = scratch->target.data(),
                         .codes = codes->data,
                         .gamma = scratch->gamma.data(),
                         .too_large = scratch->too_large.data(),
                         .sums = scratch->sums.data()})
               .Run(0, cols);
  if (!status.ok()) return status;
  const auto too_large = CopyToHost(stream, scratch->too_large.data(), 1);
  if (!too_large.ok()) return too_large.status();
  if (too_large->front() != 0) {
    return absl::OutOfRangeError(
        absl::StrCat("spacing ", spacing, ": expected codes within +-2^30; got larger ones"));
  }
  absl::StatusOr<std::vector<double>> gamma = CopyToHost(stream, scratch->gamma.data(), cols);
  if (!gamma.ok()) return gamma.status();
  return LatticeCodes{.codes = std::move(codes->tensor), .gamma = *std::move(gamma)};
}

}  // namespace quantd::compute
