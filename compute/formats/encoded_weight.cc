#include "compute/formats/encoded_weight.h"

#include <utility>

namespace quantd::compute {
namespace {

absl::StatusOr<Tensor> CopyRows(const Tensor& matrix, int64_t first, int64_t rows) {
  const int64_t row_bytes = matrix.dim(1) * static_cast<int64_t>(SizeOf(matrix.dtype()));
  return Tensor::FromBytes(matrix.dtype(), {rows, matrix.dim(1)},
                           matrix.bytes().subspan(first * row_bytes, rows * row_bytes));
}

}  // namespace

absl::StatusOr<std::vector<NamedTensor>> ScaledWeight::Pack(int64_t first, int64_t rows) const {
  absl::StatusOr<Tensor> codes = CopyRows(encoded_.codes, first, rows);
  if (!codes.ok()) return codes.status();
  absl::StatusOr<Tensor> scales =
      CopyRows(encoded_.scales, first / grid_rows_, (rows + grid_rows_ - 1) / grid_rows_);
  if (!scales.ok()) return scales.status();
  std::vector<NamedTensor> tensors;
  tensors.push_back({"weight_packed", *std::move(codes)});
  tensors.push_back({"weight_scale", *std::move(scales)});
  if (encoded_.global_scale.has_value()) {
    absl::StatusOr<Tensor> global = Tensor::Create(DType::kF32, {1});
    if (!global.ok()) return global.status();
    global->as<float>()[0] = *encoded_.global_scale;
    tensors.push_back({"weight_global_scale", *std::move(global)});
  }
  return tensors;
}

}  // namespace quantd::compute
