#include <algorithm>
#include <utility>

#include "compute/backend/cuda/code_products.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/integer_product_kernels.h"

namespace quantd::compute {
namespace {

constexpr int64_t kAlignment = 16;     // of rows and columns that 8-bit tensor cores read
constexpr int64_t kPanel = 1024;       // rows of a product at one time
constexpr int64_t kMaxSize = 1 << 17;  // sums of this many products of digits fit 32 bits
constexpr int kLargestOneDigit = 127;
constexpr int kLargestTwoDigits = 127 * kDigitBase + kDigitBase / 2 - 1;

int64_t Padded(int64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

// Codes are one or two exact digits; weights and moments have six, each within 2^-42 of the
// largest of its row. Four would do for the loss, but not for the scales: where columns are nearly
// dependent, the normal matrix amplifies 2^-28 to 1e-4.
class IntegerCodeProducts final : public CodeProducts {
 public:
  IntegerCodeProducts(CudaStream& stream, const DeviceTensor& codes)
      : stream_(stream),
        rows_(codes.dim(1)),
        cols_(codes.dim(0)),
        row_pitch_(Padded(rows_)),
        col_pitch_(Padded(cols_)),
        codes_(DeviceData<int32_t>(codes)) {}

  // False where the codes have more than two digits.
  absl::StatusOr<bool> Split() {
    auto largest = DeviceBuffer<int>::Allocate(stream_, cols_);
    if (!largest.ok()) return largest.status();
    largest_ = *std::move(largest);
    absl::Status status =
        ToStatus(LaunchLargestCodes(stream_.get(), rows_, cols_, codes_, largest_.data()),
                 "finding the largest codes");
    if (!status.ok()) return status;
    const auto host = CopyToHost(stream_, largest_.data(), cols_);
    if (!host.ok()) return host.status();
    const int most = *std::max_element(host->begin(), host->end());
    if (most > kLargestTwoDigits) return false;
    digits_ = most > kLargestOneDigit ? 2 : 1;
    const int64_t size = digits_ * row_pitch_ * col_pitch_;
    auto by_column = DeviceBuffer<int8_t>::Allocate(stream_, size);
    if (!by_column.ok()) return by_column.status();
    by_column_ = *std::move(by_column);
    auto by_row = DeviceBuffer<int8_t>::Allocate(stream_, size);
    if (!by_row.ok()) return by_row.status();
    by_row_ = *std::move(by_row);
    status = ToStatus(LaunchSplitCodesByColumn(stream_.get(), rows_, cols_, codes_, digits_,
                                               col_pitch_, row_pitch_, by_column_.data()),
                      "splitting codes");
    if (!status.ok()) return status;
    status = ToStatus(LaunchSplitCodesByRow(stream_.get(), rows_, cols_, codes_, digits_,
                                            row_pitch_, col_pitch_, by_row_.data()),
                      "splitting codes");
    if (!status.ok()) return status;
    return true;
  }

  absl::Status Gram(const double* weight, double largest_weight, double* gram) override {
    absl::StatusOr<Panel> panel = Panel::Make(stream_, row_pitch_, col_pitch_, col_pitch_);
    if (!panel.ok()) return panel.status();
    for (int64_t first = 0; first < cols_; first += kPanel) {
      const int64_t count = std::min(kPanel, cols_ - first);
      // Only the lower triangle.
      const int64_t width = Padded(first + count);
      absl::Status status = stream_.CheckCancelled();
      if (status.ok()) {
        status =
            ToStatus(LaunchSplitWeightedCodes(stream_.get(), rows_, codes_, weight, largest_weight,
                                              largest_.data(), first, count, Padded(count),
                                              row_pitch_, panel->left.data(), panel->units.data()),
                     "splitting weighted codes");
      }
      double factor = 1.0;
      for (int digit = 0; digit < digits_ && status.ok(); ++digit, factor *= kDigitBase) {
        status = Multiply(by_column_.data() + digit * col_pitch_ * row_pitch_, width, *panel,
                          Padded(count), row_pitch_);
        if (!status.ok()) break;
        status = ToStatus(
            LaunchCombineGram(stream_.get(), cols_, panel->products.data(), panel->units.data(),
                              first, count, Padded(count), width, factor, /*add=*/digit > 0, gram),
            "combining digits");
      }
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Energies(const double* scale, const double* moment, double* energies) override {
    absl::StatusOr<Panel> panel = Panel::Make(stream_, col_pitch_, row_pitch_, col_pitch_);
    if (!panel.ok()) return panel.status();
    const auto partial = DeviceBuffer<double>::Allocate(stream_, kEnergySlices * rows_);
    if (!partial.ok()) return partial.status();
    absl::Status status = ToStatus(
        cudaMemsetAsync(partial->data(), 0, static_cast<size_t>(partial->size()) * sizeof(double),
                        stream_.get()),
        "clearing energies");
    for (int64_t first = 0; first < cols_ && status.ok(); first += kPanel) {
      const int64_t count = std::min(kPanel, cols_ - first);
      status = stream_.CheckCancelled();
      if (status.ok()) {
        status = ToStatus(
            LaunchSplitScaledRows(stream_.get(), cols_, moment, scale, first, count, Padded(count),
                                  col_pitch_, panel->left.data(), panel->units.data()),
            "splitting the second moment");
      }
      double factor = 1.0;
      for (int digit = 0; digit < digits_ && status.ok(); ++digit, factor *= kDigitBase) {
        status = Multiply(by_row_.data() + digit * row_pitch_ * col_pitch_, row_pitch_, *panel,
                          Padded(count), col_pitch_);
        if (!status.ok()) break;
        status =
            ToStatus(LaunchCombineEnergies(stream_.get(), rows_, codes_, panel->products.data(),
                                           panel->units.data(), first, count, Padded(count),
                                           row_pitch_, factor, partial->data()),
                     "combining digits");
      }
    }
    if (!status.ok()) return status;
    return ToStatus(LaunchSumEnergies(stream_.get(), rows_, partial->data(), energies),
                    "summing energies");
  }

 private:
  // Digits of up to kPanel rows and their products with the codes' digits.
  struct Panel {
    DeviceBuffer<int8_t> left;       // digits x rows x inner
    DeviceBuffer<double> units;      // rows
    DeviceBuffer<int32_t> products;  // digits x rows x width

    static absl::StatusOr<Panel> Make(CudaStream& stream, int64_t inner, int64_t width,
                                      int64_t most_rows) {
      const int64_t rows = std::min(kPanel, most_rows);
      auto left = DeviceBuffer<int8_t>::Allocate(stream, kFractionDigits * rows * inner);
      if (!left.ok()) return left.status();
      auto units = DeviceBuffer<double>::Allocate(stream, rows);
      if (!units.ok()) return units.status();
      auto products = DeviceBuffer<int32_t>::Allocate(stream, kFractionDigits * rows * width);
      if (!products.ok()) return products.status();
      return Panel{*std::move(left), *std::move(units), *std::move(products)};
    }
  };

  // products[k] (rows x width) = left[k] (rows x inner) codes^T (inner x width) for all digits k of
  // `left`, which lie behind one another as rows of one matrix. cuBLAS counts columns first.
  absl::Status Multiply(const int8_t* codes, int64_t width, const Panel& panel, int64_t rows,
                        int64_t inner) {
    const int32_t one = 1;
    const int32_t zero = 0;
    return ToStatus(
        cublasGemmEx_64(stream_.blas(), CUBLAS_OP_T, CUBLAS_OP_N, width, kFractionDigits * rows,
                        inner, &one, codes, CUDA_R_8I, inner, panel.left.data(), CUDA_R_8I, inner,
                        &zero, panel.products.data(), CUDA_R_32I, width, CUBLAS_COMPUTE_32I,
                        CUBLAS_GEMM_DEFAULT),
        "multiplying digits");
  }

  CudaStream& stream_;
  const int64_t rows_;
  const int64_t cols_;
  const int64_t row_pitch_;
  const int64_t col_pitch_;
  const int32_t* const codes_;  // C x R
  int digits_ = 0;              // of a code
  DeviceBuffer<int> largest_;   // |code| of each column
  DeviceBuffer<int8_t> by_column_;
  DeviceBuffer<int8_t> by_row_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CodeProducts>> NewCodeProducts(CudaStream& stream,
                                                              const DeviceTensor& codes) {
  if (codes.dim(0) <= kMaxSize && codes.dim(1) <= kMaxSize) {
    auto products = std::make_unique<IntegerCodeProducts>(stream, codes);
    const absl::StatusOr<bool> split = products->Split();
    if (!split.ok()) return split.status();
    if (*split) return products;
  }
  return NewDoubleCodeProducts(stream, codes);
}

}  // namespace quantd::compute
