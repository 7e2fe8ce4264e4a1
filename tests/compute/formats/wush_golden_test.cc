// The number formats against codes and scales that the published code made (tests/golden).
#include <gtest/gtest.h>

#include <Eigen/LU>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/formats/number_format.h"
#include "compute/formats/safetensors.h"

namespace quantd::compute {
namespace {

using RowMajorMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

class WushGolden
    : public ::testing::TestWithParam<std::tuple<std::string, std::string, std::string>> {
 protected:
  static Tensor Read(const std::string& name) {
    static const absl::StatusOr<SafetensorsFile> file =
        SafetensorsFile::Open(QUANTD_GOLDEN_DIR "/wush_golden.safetensors");
    EXPECT_TRUE(file.ok()) << file.status();
    absl::StatusOr<Tensor> tensor = file->Read(name);
    EXPECT_TRUE(tensor.ok()) << tensor.status();
    return *std::move(tensor);
  }

  static RowMajorMatrix Matrix(const Tensor& tensor, int64_t rows, int64_t cols) {
    RowMajorMatrix matrix(rows, cols);
    ConvertToDouble(tensor.dtype(), tensor.bytes().data(), rows * cols, matrix.data());
    return matrix;
  }
};

TEST_P(WushGolden, CodesAndScalesGivenTheTransform) {
  const auto& [name, format_name, transform_name] = GetParam();
  const std::string prefix = absl::StrCat(name, "/", format_name, ".", transform_name, ".rtn.");
  const Tensor weight_tensor = Read(name + "/weight");
  const int64_t rows = weight_tensor.dim(0);
  const int64_t cols = weight_tensor.dim(1);
  const RowMajorMatrix weight = Matrix(weight_tensor, rows, cols);
  const Tensor transform_tensor = Read(prefix + "transform");
  const int64_t b = transform_tensor.dim(1);
  const RowMajorMatrix transform = Matrix(transform_tensor, cols, b);
  RowMajorMatrix transformed(rows, cols);
  for (int64_t begin = 0; begin < cols; begin += b) {
    transformed.middleCols(begin, b) =
        weight.middleCols(begin, b) * transform.middleRows(begin, b).inverse();
  }

  Recipe recipe;
  recipe.format = *ParseFormat(format_name);
  recipe.scale_rule = recipe.format == Format::kMxfp4 ? ScaleRule::kNoclip : ScaleRule::kAmax;
  const auto format = NumberFormat::Create(*ResolveRecipe(recipe), cols);
  // The published code's constants, not what this library would choose for NVFP4.
  const float global = recipe.format == Format::kMxfp4 ? 3.0f : 10.0f;
  std::vector<double> scales(rows * cols / b);
  format->ComputeScales(transformed.data(), rows, cols, global, scales.data());
  std::vector<std::byte> packed_scales(scales.size());
  format->PackScales(scales, global, packed_scales.data());
  const Tensor golden_scales = Read(prefix + "scales");
  EXPECT_TRUE(
      std::equal(packed_scales.begin(), packed_scales.end(), golden_scales.bytes().begin()));

  std::vector<uint8_t> codes(rows * cols);
  for (int64_t g = 0; g < rows * cols / b; ++g) {
    format->Round(transformed.data() + g * b, b, scales[g], codes.data() + g * b);
  }
  std::vector<uint8_t> golden_codes(rows * cols);
  UnpackCodes(Read(prefix + "codes").bytes().data(), 4, absl::MakeSpan(golden_codes));
  int64_t equal = 0;
  for (size_t i = 0; i < codes.size(); ++i) equal += codes[i] == golden_codes[i] ? 1 : 0;
  if (transform_name == "wus" || transform_name == "wush") {
    EXPECT_EQ(codes, golden_codes);
  } else {  // weights on a bf16 grid meet exact ties
    EXPECT_GE(static_cast<double>(equal) / static_cast<double>(codes.size()), 0.995);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, WushGolden,
    ::testing::Combine(::testing::Values("outlier_64x128", "gauss_48x64", "rect_40x256"),
                       ::testing::Values("mxfp4", "nvfp4"),
                       ::testing::Values("identity", "hadamard", "wus", "wush")),
    [](const auto& info) {
      return absl::StrCat(std::get<0>(info.param), "_", std::get<1>(info.param), "_",
                          std::get<2>(info.param));
    });

}  // namespace
}  // namespace quantd::compute
