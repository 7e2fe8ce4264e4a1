#include <Eigen/Core>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compute/formats/number_format.h"
#include "compute/pipeline/pipeline.h"

namespace quantd::compute {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

absl::StatusOr<const Tensor*> Find(absl::Span<const NamedTensor> tensors, absl::string_view name,
                                   DType dtype, const std::vector<int64_t>& shape) {
  for (const NamedTensor& named : tensors) {
    if (named.name != name) continue;
    if (named.tensor.dtype() != dtype || named.tensor.shape() != shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          name, ": expected ", NameOf(dtype), " [", absl::StrJoin(shape, ", "), "]; got ",
          NameOf(named.tensor.dtype()), " [", absl::StrJoin(named.tensor.shape(), ", "), "]"));
    }
    return &named.tensor;
  }
  return absl::InvalidArgumentError(absl::StrCat(name, ": missing"));
}

// The encoded matrix behind the packed tensors, shapes checked against the format.
absl::StatusOr<EncodedMatrix> Gather(absl::Span<const NamedTensor> tensors,
                                     const NumberFormat& format, int64_t rows, int64_t cols) {
  const ScaleGrid grid = format.grid();
  absl::StatusOr<const Tensor*> codes = Find(tensors, "weight_packed", format.packed_dtype(),
                                             {rows, cols * format.element_bits() / 8});
  if (!codes.ok()) return codes.status();
  absl::StatusOr<const Tensor*> scales =
      Find(tensors, "weight_scale", format.scale_dtype(),
           {(rows + grid.rows - 1) / grid.rows, (cols + grid.cols - 1) / grid.cols});
  if (!scales.ok()) return scales.status();
  EncodedMatrix encoded = {.rows = rows,
                           .cols = cols,
                           .codes = (*codes)->Clone(),
                           .scales = (*scales)->Clone(),
                           .global_scale = std::nullopt};
  if (format.GlobalScale(1.0).has_value()) {
    absl::StatusOr<const Tensor*> global = Find(tensors, "weight_global_scale", DType::kF32, {1});
    if (!global.ok()) return global.status();
    encoded.global_scale = (*global)->as<float>()[0];
  }
  return encoded;
}

// Rounds decoded codes, mapped back by the stored transform, to F32.
absl::StatusOr<Tensor> MapBack(const std::vector<double>& decoded, int64_t rows, int64_t cols,
                               const Tensor* transform) {
  absl::StatusOr<Tensor> result = Tensor::Create(DType::kF32, {rows, cols});
  if (!result.ok()) return result.status();
  const Eigen::Map<const RowMajor> from(decoded.data(), rows, cols);
  Eigen::Map<Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> to(
      result->as<float>().data(), rows, cols);
  if (transform == nullptr) {
    to = from.cast<float>();
  } else {
    const int64_t size = transform->dim(1);
    for (int64_t k = 0; k < transform->dim(0); ++k) {
      const RowMajor t =
          Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
              transform->as<float>().data() + k * size * size, size, size)
              .cast<double>();
      to.middleCols(k * size, size) = (from.middleCols(k * size, size) * t).cast<float>();
    }
  }
  const int64_t bad = FindNonFinite(DType::kF32, result->bytes().data(), result->elements());
  if (bad >= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the result overflows float32 in row ", bad / cols, ", column ", bad % cols));
  }
  return result;
}

}  // namespace

absl::StatusOr<Tensor> DequantizeResult(absl::Span<const NamedTensor> tensors,
                                        absl::string_view recipe_json) {
  absl::StatusOr<Recipe> recipe = RecipeFromJson(recipe_json);
  if (!recipe.ok()) return recipe.status();
  if (ImpliedFormat(recipe->method).has_value()) {
    return absl::UnimplementedError(absl::StrCat("method: ", NameOf(recipe->method),
                                                 " results cannot be decoded by this build"));
  }
  absl::StatusOr<const Tensor*> shape = Find(tensors, "weight_shape", DType::kI64, {2});
  if (!shape.ok()) return shape.status();
  const int64_t rows = (*shape)->as<int64_t>()[0];
  const int64_t cols = (*shape)->as<int64_t>()[1];
  if (absl::Status status = CheckGeometry(*recipe, rows, cols); !status.ok()) return status;

  const auto format = NumberFormat::Create(*recipe, cols);
  absl::StatusOr<EncodedMatrix> encoded = Gather(tensors, *format, rows, cols);
  if (!encoded.ok()) return encoded.status();
  const Tensor* transform = nullptr;
  if (recipe->transform != TransformKind::kIdentity) {
    const int64_t size = recipe->transform_block_size;
    absl::StatusOr<const Tensor*> found =
        Find(tensors, "input_transform", DType::kF32, {cols / size, size, size});
    if (!found.ok()) return found.status();
    transform = *found;
  }
  std::vector<double> decoded(rows * cols);
  absl::Status status = DecodeMatrix(*format, *encoded, absl::MakeSpan(decoded));
  if (!status.ok()) return status;
  return MapBack(decoded, rows, cols, transform);
}

}  // namespace quantd::compute
