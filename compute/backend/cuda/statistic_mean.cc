#include "compute/backend/cuda/statistic_mean.h"

#include <utility>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/matrix.h"
#include "compute/backend/cuda/matrix_kernels.h"

namespace quantd::compute {
namespace {

std::vector<int64_t> ShapeOf(const MomentSpec& spec) {
  if (spec.is_paired()) return {spec.paired_cols, spec.cols};
  if (spec.layout == MomentLayout::kFull) return {spec.cols, spec.cols};
  return {spec.cols / spec.block_size, spec.block_size, spec.block_size};
}

}  // namespace

absl::StatusOr<DeviceTensor> CudaUploadMean(CudaStream& stream, const SecondMoment& moment) {
  const MomentSpec& spec = moment.spec();
  if (moment.pending_rows() > 0) {  // a snapshot; sealed statistics have none
    absl::StatusOr<Tensor> mean = spec.layout == MomentLayout::kFull
                                      ? moment.FullMean()
                                      : moment.BlockDiagonalMean(spec.block_size);
    if (!mean.ok()) return mean.status();
    return CudaUpload(stream, *mean);
  }
  absl::StatusOr<NewTensor<double>> to = NewDoubles(stream, ShapeOf(spec));
  if (!to.ok()) return to.status();
  if (absl::Status status = CopyToDevice(stream, moment.sum(), to->data); !status.ok()) {
    return status;
  }
  absl::Status status =
      ToStatus(LaunchDivide(stream.get(), static_cast<int64_t>(moment.sum().size()),
                            moment.divisor(), to->data),
               "the mean of a statistic");
  if (!status.ok()) return status;
  return std::move(to->tensor);
}

absl::StatusOr<DeviceTensor> CudaDiagonalBlocks(CudaStream& stream, const DeviceTensor& moment,
                                                int64_t block_size) {
  const int64_t width = moment.shape().back();
  const int64_t cols = moment.shape().size() == 2 ? width : moment.dim(0) * width;
  absl::StatusOr<NewTensor<double>> to =
      NewDoubles(stream, {cols / block_size, block_size, block_size});
  if (!to.ok()) return to.status();
  absl::Status status = ToStatus(LaunchDiagonalBlocks(stream.get(), DeviceData<double>(moment),
                                                      cols, width, block_size, to->data),
                                 "diagonal blocks");
  if (!status.ok()) return status;
  return std::move(to->tensor);
}

}  // namespace quantd::compute
