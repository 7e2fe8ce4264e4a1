#include <utility>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/token_rows.h"
#include "compute/backend/cuda/token_sums.h"
#include "compute/backend/cuda/token_transfer.h"
#include "compute/second_moment/second_moment.h"
#include "compute/tensor/tensor.h"

// Sums whose products are in float64 whatever the tokens are.
namespace quantd::compute {
namespace {

absl::StatusOr<DeviceBuffer<double>> UploadSum(TokenTransfer& transfer, int64_t elements,
                                               const std::vector<double>& start) {
  if (absl::Status status = transfer.Enter(); !status.ok()) return status;
  CudaStream& stream = transfer.compute();
  if (!start.empty()) return Upload(stream, absl::MakeConstSpan(start));
  auto sum = DeviceBuffer<double>::Allocate(stream, elements);
  if (!sum.ok()) return sum.status();
  absl::Status status = ToStatus(
      cudaMemsetAsync(sum->data(), 0, static_cast<size_t>(elements) * sizeof(double), stream.get()),
      "clearing a sum");
  if (!status.ok()) return status;
  return sum;
}

class CudaBlockSum final : public TokenSum {
 public:
  CudaBlockSum(std::unique_ptr<TokenTransfer> transfer, int64_t cols, int64_t block_size,
               DeviceBuffer<double> sum)
      : transfer_(std::move(transfer)),
        size_(block_size),
        sum_(std::move(sum)),
        tokens_(*transfer_, cols) {}

  int64_t rows() const override { return rows_; }

  absl::Status Append(DType dtype, const std::byte* rows, const std::byte* /*paired*/,
                      int64_t count) override {
    if (absl::Status status = transfer_->Enter(); !status.ok()) return status;
    absl::Status status = tokens_.Write(rows_, dtype, rows, count);
    rows_ += count;
    return status;
  }

  absl::Status Resume(absl::Span<const double> rows) override {
    if (rows.empty()) return absl::OkStatus();
    return Append(DType::kF64, reinterpret_cast<const std::byte*>(rows.data()), nullptr,
                  static_cast<int64_t>(rows.size()) / tokens_.width());
  }

  absl::Status Fold() override {
    if (absl::Status status = transfer_->Enter(); !status.ok()) return status;
    if (absl::Status status = tokens_.BeginFold(); !status.ok()) return status;
    const auto size = static_cast<int>(size_);
    const auto cols = static_cast<int>(tokens_.width());
    const double one = 1.0;
    absl::Status status = ToStatus(
        cublasDgemmStridedBatched(transfer_->compute().blas(), CUBLAS_OP_N, CUBLAS_OP_T, size, size,
                                  kSliceTokens, &one, tokens_.rows(), cols, size_, tokens_.rows(),
                                  cols, size_, &one, sum_.data(), size, size_ * size_, cols / size),
        "multiplying tokens");
    if (!status.ok()) return status;
    rows_ = 0;
    return tokens_.EndFold();
  }

  // The lower triangles count, so that rounding leaves the blocks symmetric.
  absl::StatusOr<std::vector<double>> Sum() override {
    if (absl::Status status = transfer_->Enter(); !status.ok()) return status;
    absl::StatusOr<std::vector<double>> sum =
        CopyToHost(transfer_->compute(), sum_.data(), sum_.size());
    if (!sum.ok()) return sum.status();
    for (auto block = sum->begin(); block != sum->end(); block += size_ * size_) {
      for (int64_t i = 0; i < size_; ++i) {
        for (int64_t j = 0; j < i; ++j) block[j * size_ + i] = block[i * size_ + j];
      }
    }
    return sum;
  }

  absl::StatusOr<std::vector<double>> Rows() override {
    if (rows_ == 0) return std::vector<double>();
    absl::Status status = transfer_->Enter();
    if (status.ok()) status = transfer_->ComputeAfterCopies();
    if (!status.ok()) return status;
    return CopyToHost(transfer_->compute(), tokens_.rows(), rows_ * tokens_.width());
  }

 private:
  std::unique_ptr<TokenTransfer> transfer_;
  const int64_t size_;
  DeviceBuffer<double> sum_;  // cols/B x B x B
  TokenRows tokens_;
  int64_t rows_ = 0;
};

class CudaPairedSum final : public TokenSum {
 public:
  CudaPairedSum(std::unique_ptr<TokenTransfer> transfer, int64_t left_cols, int64_t cols,
                DeviceBuffer<double> sum)
      : transfer_(std::move(transfer)),
        sum_(std::move(sum)),
        left_(*transfer_, left_cols),
        right_(*transfer_, cols) {}

  int64_t rows() const override { return rows_; }

  absl::Status Append(DType dtype, const std::byte* rows, const std::byte* paired,
                      int64_t count) override {
    if (absl::Status status = transfer_->Enter(); !status.ok()) return status;
    absl::Status status = left_.Write(rows_, dtype, paired, count);
    if (status.ok()) status = right_.Write(rows_, dtype, rows, count);
    rows_ += count;
    return status;
  }

  absl::Status Resume(absl::Span<const double> rows) override {
    const int64_t values = left_.width() + right_.width();
    for (const double* row = rows.begin(); row != rows.end(); row += values) {
      const auto* paired = reinterpret_cast<const std::byte*>(row);
      const auto* right = reinterpret_cast<const std::byte*>(row + left_.width());
      absl::Status status = Append(DType::kF64, right, paired, 1);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Fold() override {
    if (absl::Status status = transfer_->Enter(); !status.ok()) return status;
    if (absl::Status status = left_.BeginFold(); !status.ok()) return status;
    const auto height = static_cast<int>(left_.width());
    const auto cols = static_cast<int>(right_.width());
    const double one = 1.0;
    absl::Status status =
        ToStatus(cublasDgemm(transfer_->compute().blas(), CUBLAS_OP_N, CUBLAS_OP_T, cols, height,
                             kSliceTokens, &one, right_.rows(), cols, left_.rows(), height, &one,
                             sum_.data(), cols),
                 "multiplying tokens");
    if (!status.ok()) return status;
    rows_ = 0;
    if (status = left_.EndFold(); !status.ok()) return status;
    return right_.EndFold();
  }

  absl::StatusOr<std::vector<double>> Sum() override {
    if (absl::Status status = transfer_->Enter(); !status.ok()) return status;
    return CopyToHost(transfer_->compute(), sum_.data(), sum_.size());
  }

  absl::StatusOr<std::vector<double>> Rows() override {
    if (rows_ == 0) return std::vector<double>();
    absl::Status status = transfer_->Enter();
    if (status.ok()) status = transfer_->ComputeAfterCopies();
    if (!status.ok()) return status;
    auto left = CopyToHost(transfer_->compute(), left_.rows(), rows_ * left_.width());
    if (!left.ok()) return left.status();
    auto right = CopyToHost(transfer_->compute(), right_.rows(), rows_ * right_.width());
    if (!right.ok()) return right.status();
    std::vector<double> rows;
    rows.reserve(left->size() + right->size());
    for (int64_t row = 0; row < rows_; ++row) {
      const auto left_row = left->begin() + row * left_.width();
      const auto right_row = right->begin() + row * right_.width();
      rows.insert(rows.end(), left_row, left_row + left_.width());
      rows.insert(rows.end(), right_row, right_row + right_.width());
    }
    return rows;
  }

 private:
  std::unique_ptr<TokenTransfer> transfer_;
  DeviceBuffer<double> sum_;  // left_cols x cols
  TokenRows left_;
  TokenRows right_;
  int64_t rows_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenSum>> NewCudaBlockSum(CudaDevice& device, int64_t cols,
                                                          int64_t block_size,
                                                          const std::vector<double>& start) {
  absl::StatusOr<std::unique_ptr<TokenTransfer>> transfer = TokenTransfer::Create(device);
  if (!transfer.ok()) return transfer.status();
  absl::StatusOr<DeviceBuffer<double>> sum = UploadSum(**transfer, cols * block_size, start);
  if (!sum.ok()) return sum.status();
  return std::make_unique<CudaBlockSum>(*std::move(transfer), cols, block_size, *std::move(sum));
}

absl::StatusOr<std::unique_ptr<TokenSum>> NewCudaPairedSum(CudaDevice& device, int64_t left_cols,
                                                           int64_t cols,
                                                           const std::vector<double>& start) {
  absl::StatusOr<std::unique_ptr<TokenTransfer>> transfer = TokenTransfer::Create(device);
  if (!transfer.ok()) return transfer.status();
  absl::StatusOr<DeviceBuffer<double>> sum = UploadSum(**transfer, left_cols * cols, start);
  if (!sum.ok()) return sum.status();
  return std::make_unique<CudaPairedSum>(*std::move(transfer), left_cols, cols, *std::move(sum));
}

}  // namespace quantd::compute
