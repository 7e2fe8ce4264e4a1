#include "compute/backend/cuda/split_product.h"

#include <algorithm>
#include <utility>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/split_product_kernels.h"

namespace quantd::compute {
namespace {

constexpr int64_t kMomentPiece = 1024;
constexpr int64_t kOutputPiece = 2048;
// Multiply-adds from which on the detour pays.
constexpr int64_t kLeastMomentWork = int64_t{5} << 30;
constexpr int64_t kLeastOutputWork = int64_t{8} << 30;

// product (rows x cols, in rows of product_pitch) = alpha left right^T + beta product, over the
// columns [begin, begin + inner) of left (rows x pitch) and right (cols x pitch).
struct HalfProduct {
  int64_t rows;
  int64_t cols;
  int64_t pitch;
  const __half* left;
  const __half* right;
  int64_t product_pitch = cols;

  absl::Status Add(CudaStream& stream, int64_t begin, int64_t inner, float alpha, float beta,
                   float* product) const {
    return ToStatus(cublasGemmEx_64(stream.blas(), CUBLAS_OP_T, CUBLAS_OP_N, cols, rows, inner,
                                    &alpha, right + begin, CUDA_R_16F, pitch, left + begin,
                                    CUDA_R_16F, pitch, &beta, product, CUDA_R_32F, product_pitch,
                                    CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                    "half-precision product");
  }
};

// The rows of a matrix: scale (high + low / kLowScale).
struct SplitRows {
  DeviceBuffer<__half> high;
  DeviceBuffer<__half> low;
  DeviceBuffer<double> scale;

  static absl::StatusOr<SplitRows> Create(CudaStream& stream, int64_t rows, int64_t cols,
                                          const double* from) {
    auto high = DeviceBuffer<__half>::Allocate(stream, rows * cols);
    if (!high.ok()) return high.status();
    auto low = DeviceBuffer<__half>::Allocate(stream, rows * cols);
    if (!low.ok()) return low.status();
    auto scale = DeviceBuffer<double>::Allocate(stream, rows);
    if (!scale.ok()) return scale.status();
    absl::Status status = ToStatus(
        LaunchSplitRows(stream.get(), rows, cols, from, high->data(), low->data(), scale->data()),
        "splitting a matrix");
    if (!status.ok()) return status;
    return SplitRows{*std::move(high), *std::move(low), *std::move(scale)};
  }
};

}  // namespace

bool CanSplitMoment(int64_t rows, int64_t cols) {
  return cols % kSplitAlignment == 0 && cols <= kMostScaledCols &&
         rows * cols >= kLeastMomentWork / cols;
}

bool CanSplitOutputs(int64_t tokens, int64_t rows, int64_t cols) {
  return cols % kSplitAlignment == 0 && tokens * rows >= kLeastOutputWork / cols;
}

absl::StatusOr<SplitMoment> SplitSecondMoment(CudaStream& stream, const DeviceTensor& moment,
                                              bool with_low, bool triangle) {
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
                       .irregular = *std::move(irregular),
                       .triangle = triangle};
  if (with_low) {
    auto low = DeviceBuffer<__half>::Allocate(stream, size * size);
    if (!low.ok()) return low.status();
    split.low = *std::move(low);
  }
  absl::Status status = ToStatus(LaunchMomentRoots(stream.get(), size, m, split.root.data()),
                                 "splitting a second moment");
  if (status.ok()) {
    status = ToStatus(LaunchSplitCorrelation(stream.get(), size, m, split.root.data(),
                                             triangle ? kTriangleBlock : size, split.high.data(),
                                             split.low.data(), split.irregular.data()),
                      "splitting a second moment");
  }
  if (!status.ok()) return status;
  return split;
}

absl::Status MultiplySplit(CudaStream& stream, const SplitMoment& moment, int64_t rows,
                           int64_t cols, const __half* left, float* product) {
  const bool with_low = moment.low.size() != 0;
  const int64_t block_cols = moment.triangle ? kTriangleBlock : cols;
  absl::Status status;
  for (int64_t block = 0; block < cols && status.ok(); block += block_cols) {
    const int64_t width = std::min(block_cols, cols - block);
    const int64_t inner = moment.triangle ? block + width : cols;
    const auto add = [&](const DeviceBuffer<__half>& part, int64_t begin, int64_t count,
                         float alpha, float beta) {
      const HalfProduct of_block = {rows, width, cols, left, part.data() + block * cols, cols};
      return of_block.Add(stream, begin, count, alpha, beta, product + block);
    };
    // What a long sum of low parts lacks is too little to matter.
    if (with_low) status = add(moment.low, 0, inner, 1.0f / kLowScale, 0.0f);
    const int64_t piece = with_low ? kMomentPiece : inner;
    for (int64_t begin = 0; begin < inner && status.ok(); begin += piece) {
      const bool first = begin == 0 && !with_low;
      status = add(moment.high, begin, std::min(piece, inner - begin), 1.0f, first ? 0.0f : 1.0f);
    }
  }
  return status;
}

absl::Status MultiplyOutputsSplit(CudaStream& stream, int64_t tokens, int64_t rows, int64_t cols,
                                  const double* sample, const double* weight, double* outputs) {
  const absl::StatusOr<SplitRows> x = SplitRows::Create(stream, tokens, cols, sample);
  if (!x.ok()) return x.status();
  const absl::StatusOr<SplitRows> w = SplitRows::Create(stream, rows, cols, weight);
  if (!w.ok()) return w.status();
  auto product = DeviceBuffer<float>::Allocate(stream, tokens * rows);
  if (!product.ok()) return product.status();
  const HalfProduct low_high = {tokens, rows, cols, x->low.data(), w->high.data()};
  const HalfProduct high_low = {tokens, rows, cols, x->high.data(), w->low.data()};
  const HalfProduct high = {tokens, rows, cols, x->high.data(), w->high.data()};
  absl::Status status = low_high.Add(stream, 0, cols, 1.0f / kLowScale, 0.0f, product->data());
  if (status.ok()) {
    status = high_low.Add(stream, 0, cols, 1.0f / kLowScale, 1.0f, product->data());
  }
  for (int64_t begin = 0; begin < cols && status.ok(); begin += kOutputPiece) {
    status =
        high.Add(stream, begin, std::min(kOutputPiece, cols - begin), 1.0f, 1.0f, product->data());
  }
  if (!status.ok()) return status;
  return ToStatus(LaunchScaleOutputs(stream.get(), tokens, rows, product->data(), x->scale.data(),
                                     w->scale.data(), outputs),
                  "outputs");
}

}  // namespace quantd::compute
