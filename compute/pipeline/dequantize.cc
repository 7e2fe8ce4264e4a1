#include <Eigen/Core>
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/formats/grid_weight.h"
#include "compute/formats/lattice_weight.h"
#include "compute/formats/number_format.h"
#include "compute/formats/tensor_lookup.h"
#include "compute/pipeline/pipeline.h"

namespace quantd::compute {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// The encoded matrix behind the packed tensors, shapes checked against the format.
absl::StatusOr<EncodedMatrix> Gather(absl::Span<const NamedTensor> tensors,
                                     const NumberFormat& format, int64_t rows, int64_t cols) {
  const ScaleGrid grid = format.grid();
  absl::StatusOr<const Tensor*> codes = FindTensor(tensors, "weight_packed", format.packed_dtype(),
                                                   {rows, cols * format.element_bits() / 8});
  if (!codes.ok()) return codes.status();
  absl::StatusOr<const Tensor*> scales =
      FindTensor(tensors, "weight_scale", format.scale_dtype(),
                 {(rows + grid.rows - 1) / grid.rows, (cols + grid.cols - 1) / grid.cols});
  if (!scales.ok()) return scales.status();
  EncodedMatrix encoded = {.rows = rows,
                           .cols = cols,
                           .codes = (*codes)->Clone(),
                           .scales = (*scales)->Clone(),
                           .global_scale = std::nullopt};
  if (format.GlobalScale(1.0).has_value()) {
    absl::StatusOr<const Tensor*> global =
        FindTensor(tensors, "weight_global_scale", DType::kF32, {1});
    if (!global.ok()) return global.status();
    encoded.global_scale = (*global)->as<float>()[0];
  }
  return encoded;
}

absl::Status CheckFinite(const Tensor& matrix) {
  const int64_t bad = FindNonFinite(DType::kF32, matrix.bytes().data(), matrix.elements());
  if (bad < 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the result overflows float32 in row ",
                                                 bad / matrix.dim(1), ", column ",
                                                 bad % matrix.dim(1)));
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
  if (absl::Status status = CheckFinite(*result); !status.ok()) return status;
  return result;
}

// Decodes a few rows at a time: a matrix of float64 beside the result would be twice its size.
template <typename Weight>
absl::StatusOr<Tensor> DequantizeByRows(const Weight& weight) {
  constexpr int64_t kPanel = 16;
  const int64_t cols = weight.cols();
  absl::StatusOr<Tensor> result = Tensor::Create(DType::kF32, {weight.rows(), cols});
  if (!result.ok()) return result.status();
  std::vector<double> panel(kPanel * cols);
  for (int64_t first = 0; first < weight.rows(); first += kPanel) {
    const int64_t rows = std::min(kPanel, weight.rows() - first);
    weight.Dequantize(first, rows, absl::MakeSpan(panel.data(), rows * cols));
    std::transform(panel.begin(), panel.begin() + rows * cols,
                   result->as<float>().begin() + first * cols,
                   [](double value) { return static_cast<float>(value); });
  }
  if (absl::Status status = CheckFinite(*result); !status.ok()) return status;
  return result;
}

absl::StatusOr<Tensor> DequantizeLattice(absl::Span<const NamedTensor> tensors, int64_t rows,
                                         int64_t cols) {
  const auto weight = LatticeWeight::Unpack(tensors, rows, cols);
  if (!weight.ok()) return weight.status();
  return DequantizeByRows(**weight);
}

absl::StatusOr<Tensor> DequantizeGrid(const Recipe& recipe, absl::Span<const NamedTensor> tensors,
                                      int64_t rows, int64_t cols) {
  const auto weight = GridWeight::Unpack(GridSpecOf(recipe), tensors, rows, cols);
  if (!weight.ok()) return weight.status();
  return DequantizeByRows(**weight);
}

}  // namespace

absl::StatusOr<Tensor> DequantizeResult(absl::Span<const NamedTensor> tensors,
                                        absl::string_view recipe_json) {
  absl::StatusOr<Recipe> recipe = RecipeFromJson(recipe_json);
  if (!recipe.ok()) return recipe.status();
  absl::StatusOr<const Tensor*> shape = FindTensor(tensors, "weight_shape", DType::kI64, {2});
  if (!shape.ok()) return shape.status();
  const int64_t rows = (*shape)->as<int64_t>()[0];
  const int64_t cols = (*shape)->as<int64_t>()[1];
  if (absl::Status status = CheckGeometry(*recipe, rows, cols); !status.ok()) return status;

  if (recipe->method == Method::kWaterSic) return DequantizeLattice(tensors, rows, cols);
  if (recipe->method == Method::kHiggs) return DequantizeGrid(*recipe, tensors, rows, cols);
  const auto format = NumberFormat::Create(*recipe, cols);
  absl::StatusOr<EncodedMatrix> encoded = Gather(tensors, *format, rows, cols);
  if (!encoded.ok()) return encoded.status();
  const Tensor* transform = nullptr;
  if (recipe->transform != TransformKind::kIdentity) {
    const int64_t size = recipe->transform_block_size;
    absl::StatusOr<const Tensor*> found =
        FindTensor(tensors, "input_transform", DType::kF32, {cols / size, size, size});
    if (!found.ok()) return found.status();
    transform = *found;
  }
  std::vector<double> decoded(rows * cols);
  absl::Status status = DecodeMatrix(*format, *encoded, absl::MakeSpan(decoded));
  if (!status.ok()) return status;
  return MapBack(decoded, rows, cols, transform);
}

}  // namespace quantd::compute
