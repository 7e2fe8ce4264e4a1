#include "compute/backend/cuda/gram_sum.h"

#include <algorithm>
#include <utility>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/gram_hopper.h"
#include "compute/backend/cuda/gram_kernels.h"
#include "compute/backend/cuda/gram_pairs.h"
#include "compute/second_moment/second_moment.h"

namespace quantd::compute {
namespace {

constexpr int64_t kScratchBytes = int64_t{64} << 20;

// Columns that cuBLAS multiplies at a time with those that are not to their left.
constexpr int64_t kPanelCols = 8 * kGramTile;

// Rows of the whole matrix that pass through scratch at a time.
int64_t RowsAtATime(int64_t cols) {
  const auto row_bytes = cols * static_cast<int64_t>(sizeof(double));
  return std::clamp<int64_t>(kScratchBytes / row_bytes, 1, cols);
}

// Calls add(first, width) for the panels of the lower triangle.
template <typename Add>
absl::Status ForEachPanel(int64_t cols, const Add& add) {
  for (int64_t first = 0; first < cols; first += kPanelCols) {
    absl::Status status = add(first, std::min(kPanelCols, cols - first));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<int> ReadAttribute(int device, cudaDeviceAttr attribute) {
  int value = 0;
  absl::Status status =
      ToStatus(cudaDeviceGetAttribute(&value, attribute, device), "reading the CUDA device");
  if (!status.ok()) return status;
  return value;
}

}  // namespace

absl::StatusOr<CudaGramSum::Products> CudaGramSum::ChooseProducts(int device) {
  absl::StatusOr<int> major = ReadAttribute(device, cudaDevAttrComputeCapabilityMajor);
  if (!major.ok()) return major.status();
  absl::StatusOr<int> minor = ReadAttribute(device, cudaDevAttrComputeCapabilityMinor);
  if (!minor.ok()) return minor.status();
  return IsGramHopper(*major, *minor) ? Products::kHopper : Products::kBlas;
}

absl::StatusOr<std::unique_ptr<CudaGramSum>> CudaGramSum::Create(CudaStream& stream,
                                                                 Products products, int64_t cols,
                                                                 const std::vector<double>& start) {
  std::unique_ptr<CudaGramSum> sum(new CudaGramSum(stream, products, cols));
  absl::StatusOr<int> multiprocessors =
      ReadAttribute(stream.device().id(), cudaDevAttrMultiProcessorCount);
  if (!multiprocessors.ok()) return multiprocessors.status();
  sum->multiprocessors_ = *multiprocessors;
  if (absl::Status status = sum->Load(start); !status.ok()) return status;
  const std::vector<GramPair> pairs = GramPairs(GramTilesASide(cols));
  absl::StatusOr<DeviceBuffer<GramPair>> uploaded = Upload(stream, absl::MakeConstSpan(pairs));
  if (!uploaded.ok()) return uploaded.status();
  sum->pairs_ = *std::move(uploaded);
  sum->pair_count_ = static_cast<int>(pairs.size());
  return sum;
}

absl::Status CudaGramSum::Load(const std::vector<double>& start) {
  auto sum = DeviceBuffer<double>::Allocate(stream_, GramElements(cols_));
  if (!sum.ok()) return sum.status();
  sum_ = *std::move(sum);
  auto diagonal = DeviceBuffer<double>::Allocate(stream_, cols_);
  if (!diagonal.ok()) return diagonal.status();
  diagonal_ = *std::move(diagonal);
  // Past the last column tiles stay zero.
  const auto clear = [&](const DeviceBuffer<double>& values) {
    return ToStatus(
        cudaMemsetAsync(values.data(), 0, static_cast<size_t>(values.size()) * sizeof(double),
                        stream_.get()),
        "clearing a sum");
  };
  if (absl::Status status = clear(sum_); !status.ok()) return status;
  if (start.empty()) return clear(diagonal_);
  const int64_t height = RowsAtATime(cols_);
  auto rows = DeviceBuffer<double>::Allocate(stream_, height * cols_);
  if (!rows.ok()) return rows.status();
  for (int64_t first = 0; first < cols_; first += height) {
    const int64_t count = std::min(height, cols_ - first);
    absl::Status status = CopyToDevice(
        stream_, absl::MakeConstSpan(start).subspan(first * cols_, count * cols_), rows->data());
    if (!status.ok()) return status;
    status = ToStatus(LaunchReadGramRows(stream_.get(), cols_, first, count, rows->data(),
                                         sum_.data(), diagonal_.data()),
                      "loading a sum");
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaGramSum::AddNarrow(const uint16_t* rows, int64_t slices) {
  auto squares = DeviceBuffer<double>::Allocate(stream_, slices * cols_);
  if (!squares.ok()) return squares.status();
  absl::Status status = ToStatus(LaunchAddGramSquares(stream_.get(), cols_, PitchOf(cols_), slices,
                                                      rows, squares->data(), diagonal_.data()),
                                 "adding squares");
  if (!status.ok()) return status;
  if (products_ == Products::kBlas) return AddNarrowByPanels(rows, slices);
  return ToStatus(LaunchAddGramHopper(stream_.get(), multiprocessors_, pairs_.data(), pair_count_,
                                      cols_, PitchOf(cols_), slices, rows, sum_.data()),
                  "adding products");
}

absl::Status CudaGramSum::AddNarrowByPanels(const uint16_t* rows, int64_t slices) {
  const int64_t pitch = PitchOf(cols_);
  auto panel = DeviceBuffer<float>::Allocate(stream_, std::min(kPanelCols, cols_) * cols_);
  if (!panel.ok()) return panel.status();
  const float one = 1.0f;
  const float zero = 0.0f;
  for (int64_t row = 0; row < slices * kSliceTokens; row += kGramDepth) {
    const uint16_t* const x = rows + row * pitch;
    absl::Status status = ForEachPanel(cols_, [&](int64_t first, int64_t width) -> absl::Status {
      absl::Status multiplied =
          ToStatus(cublasGemmEx(stream_.blas(), CUBLAS_OP_N, CUBLAS_OP_T, static_cast<int>(width),
                                static_cast<int>(cols_ - first), kGramDepth, &one, x + first,
                                CUDA_R_16BF, static_cast<int>(pitch), x + first, CUDA_R_16BF,
                                static_cast<int>(pitch), &zero, panel->data(), CUDA_R_32F,
                                static_cast<int>(width), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                   "multiplying tokens");
      if (!multiplied.ok()) return multiplied;
      return ToStatus(
          LaunchAddGramPanel(stream_.get(), cols_, first, width, panel->data(), sum_.data()),
          "adding products");
    });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaGramSum::AddWide(const double* rows) {
  auto panel = DeviceBuffer<double>::Allocate(stream_, std::min(kPanelCols, cols_) * cols_);
  if (!panel.ok()) return panel.status();
  const double one = 1.0;
  const double zero = 0.0;
  return ForEachPanel(cols_, [&](int64_t first, int64_t width) -> absl::Status {
    absl::Status multiplied =
        ToStatus(cublasDgemm(stream_.blas(), CUBLAS_OP_N, CUBLAS_OP_T, static_cast<int>(width),
                             static_cast<int>(cols_ - first), kSliceTokens, &one, rows + first,
                             static_cast<int>(cols_), rows + first, static_cast<int>(cols_), &zero,
                             panel->data(), static_cast<int>(width)),
                 "multiplying tokens");
    if (!multiplied.ok()) return multiplied;
    return ToStatus(LaunchAddGramPanel(stream_.get(), cols_, first, width, panel->data(),
                                       sum_.data(), diagonal_.data()),
                    "adding products");
  });
}

absl::StatusOr<std::vector<double>> CudaGramSum::Sum() {
  const int64_t height = RowsAtATime(cols_);
  auto rows = DeviceBuffer<double>::Allocate(stream_, height * cols_);
  if (!rows.ok()) return rows.status();
  std::vector<double> sum(cols_ * cols_);
  for (int64_t first = 0; first < cols_; first += height) {
    const int64_t count = std::min(height, cols_ - first);
    absl::Status status = ToStatus(LaunchWriteGramRows(stream_.get(), cols_, first, count,
                                                       sum_.data(), diagonal_.data(), rows->data()),
                                   "reading a sum");
    if (!status.ok()) return status;
    status =
        CopyBytesToHost(stream_, rows->data(), count * cols_ * static_cast<int64_t>(sizeof(double)),
                        sum.data() + first * cols_);
    if (!status.ok()) return status;
  }
  return sum;
}

}  // namespace quantd::compute
