#include "compute/backend/cuda/split_product.h"

#include <algorithm>
#include <utility>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/split_product_kernels.h"

namespace quantd::compute {
namespace {

constexpr int64_t kPiece = 1024;
// Multiply-adds from which on the detour pays.
constexpr int64_t kLeastWork = int64_t{5} << 30;

// product = alpha left[:, begin : begin + inner] k[begin : begin + inner, :] + beta product, k
// being symmetric.
absl::Status AddPiece(CudaStream& stream, int64_t rows, int64_t cols, int64_t begin, int64_t inner,
                      float alpha, const __half* left, const __half* k, float beta,
                      float* product) {
  return ToStatus(
      cublasGemmEx_64(stream.blas(), CUBLAS_OP_T, CUBLAS_OP_N, cols, rows, inner, &alpha, k + begin,
                      CUDA_R_16F, cols, left + begin, CUDA_R_16F, cols, &beta, product, CUDA_R_32F,
                      cols, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "half-precision product");
}

}  // namespace

bool CanSplit(int64_t rows, int64_t cols) {
  return cols % kSplitAlignment == 0 && rows * cols >= kLeastWork / cols;
}

absl::StatusOr<SplitMoment> SplitSecondMoment(CudaStream& stream, const DeviceTensor& moment,
                                              bool with_low) {
  const int64_t size = moment.dim(0);
  const auto* m = DeviceData<double>(moment);
  auto root = DeviceBuffer<double>::Allocate(stream, size);
  if (!root.ok()) return root.status();
  auto high = DeviceBuffer<__half>::Allocate(stream, size * size);
  if (!high.ok()) return high.status();
  auto irregular = DeviceBuffer<int>::Allocate(stream, 1);
  if (!irregular.ok()) return irregular.status();
  SplitMoment split = {.root = *std::move(root),
                       .high = *std::move(high),
                       .low = {},
                       .irregular = *std::move(irregular)};
  if (with_low) {
    auto low = DeviceBuffer<__half>::Allocate(stream, size * size);
    if (!low.ok()) return low.status();
    split.low = *std::move(low);
  }
  absl::Status status = ToStatus(LaunchMomentRoots(stream.get(), size, m, split.root.data()),
                                 "splitting a second moment");
  if (status.ok()) {
    status =
        ToStatus(LaunchSplitCorrelation(stream.get(), size, m, split.root.data(), split.high.data(),
                                        split.low.data(), split.irregular.data()),
                 "splitting a second moment");
  }
  if (!status.ok()) return status;
  return split;
}

absl::Status MultiplySplit(CudaStream& stream, const SplitMoment& moment, int64_t rows,
                           int64_t cols, const __half* left, float* product) {
  if (moment.low.size() == 0) {
    return AddPiece(stream, rows, cols, 0, cols, 1.0f, left, moment.high.data(), 0.0f, product);
  }
  for (int64_t begin = 0; begin < cols; begin += kPiece) {
    const int64_t inner = std::min(kPiece, cols - begin);
    absl::Status status = AddPiece(stream, rows, cols, begin, inner, 1.0f / kLowScale, left,
                                   moment.low.data(), begin == 0 ? 0.0f : 1.0f, product);
    if (status.ok()) {
      status =
          AddPiece(stream, rows, cols, begin, inner, 1.0f, left, moment.high.data(), 1.0f, product);
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace quantd::compute
