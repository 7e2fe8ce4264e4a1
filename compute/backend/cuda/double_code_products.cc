#include <utility>

#include "compute/backend/cuda/code_products.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/lattice_scales_kernels.h"

namespace quantd::compute {
namespace {

class DoubleCodeProducts final : public CodeProducts {
 public:
  DoubleCodeProducts(CudaStream& stream, const DeviceTensor& codes)
      : stream_(stream),
        rows_(codes.dim(1)),
        cols_(codes.dim(0)),
        codes_(DeviceData<int32_t>(codes)) {}

  absl::Status Gram(const double* weight, double /*largest_weight*/, double* gram) override {
    auto scaled = DeviceBuffer<double>::Allocate(stream_, rows_ * cols_);
    if (!scaled.ok()) return scaled.status();
    absl::Status status = ToStatus(
        LaunchScaleCodes(stream_.get(), rows_, cols_, codes_, nullptr, weight, scaled->data()),
        "scaling codes");
    if (!status.ok()) return status;
    // cuBLAS counts columns first: our lower triangle is its upper one.
    const double one = 1.0;
    const double zero = 0.0;
    return ToStatus(cublasDsyrk_64(stream_.blas(), CUBLAS_FILL_MODE_UPPER, CUBLAS_OP_T, cols_,
                                   rows_, &one, scaled->data(), rows_, &zero, gram, cols_),
                    "multiplying codes");
  }

  absl::Status Energies(const double* scale, const double* moment, double* energies) override {
    auto scaled = DeviceBuffer<double>::Allocate(stream_, rows_ * cols_);
    if (!scaled.ok()) return scaled.status();
    auto product = DeviceBuffer<double>::Allocate(stream_, rows_ * cols_);
    if (!product.ok()) return product.status();
    auto partial = DeviceBuffer<double>::Allocate(stream_, kRowSumSlices * rows_);
    if (!partial.ok()) return partial.status();
    absl::Status status = ToStatus(
        LaunchScaleCodes(stream_.get(), rows_, cols_, codes_, scale, nullptr, scaled->data()),
        "scaling codes");
    if (!status.ok()) return status;
    const double one = 1.0;
    const double zero = 0.0;
    status = ToStatus(
        cublasDgemm_64(stream_.blas(), CUBLAS_OP_N, CUBLAS_OP_N, rows_, cols_, cols_, &one,
                       scaled->data(), rows_, moment, cols_, &zero, product->data(), rows_),
        "multiplying codes by the second moment");
    if (!status.ok()) return status;
    return ToStatus(LaunchSumRows(stream_.get(), rows_, cols_, codes_, scale, product->data(),
                                  partial->data(), energies),
                    "summing energies");
  }

 private:
  CudaStream& stream_;
  const int64_t rows_;
  const int64_t cols_;
  const int32_t* const codes_;  // C x R
};

}  // namespace

std::unique_ptr<CodeProducts> NewDoubleCodeProducts(CudaStream& stream, const DeviceTensor& codes) {
  return std::make_unique<DoubleCodeProducts>(stream, codes);
}

}  // namespace quantd::compute
