#include "compute/formats/number_format.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compute/formats/element_codec.h"
#include "compute/formats/fp8_format.h"
#include "compute/formats/integer_format.h"
#include "compute/formats/mxfp4_format.h"
#include "compute/formats/nvfp4_format.h"

namespace quantd::compute {
namespace {

constexpr int64_t kFp8Block = 128;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

absl::Status CheckTensor(absl::string_view field, const Tensor& tensor, DType dtype, int64_t rows,
                         int64_t cols) {
  const std::vector<int64_t> shape = {rows, cols};
  if (tensor.dtype() == dtype && tensor.shape() == shape) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": expected ", NameOf(dtype), " [", rows,
                                                 ", ", cols, "]; got ", NameOf(tensor.dtype()),
                                                 " [", absl::StrJoin(tensor.shape(), ", "), "]"));
}

absl::Status CheckGlobal(const NumberFormat& format, std::optional<float> global) {
  const bool expected = format.GlobalScale(1.0).has_value();
  if (global.has_value() != expected) {
    return absl::InvalidArgumentError(absl::StrCat("weight_global_scale: expected ",
                                                   expected ? "one" : "none", " for this format"));
  }
  if (expected && !(std::isfinite(*global) && *global > 0.0f)) {
    return absl::InvalidArgumentError(
        absl::StrCat("weight_global_scale: expected a finite number > 0; got ", *global));
  }
  return absl::OkStatus();
}

absl::Status CheckScales(absl::Span<const double> scales) {
  for (size_t i = 0; i < scales.size(); ++i) {
    if (!std::isfinite(scales[i]) || scales[i] < 0.0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "weight_scale: expected finite numbers >= 0; got ", scales[i], " at element ", i));
    }
  }
  return absl::OkStatus();
}

// Only E4M3 has codes that are no number.
absl::Status CheckElements(const EncodedMatrix& encoded) {
  if (encoded.codes.dtype() != DType::kF8E4M3) return absl::OkStatus();
  const absl::Span<const uint8_t> codes = encoded.codes.as<uint8_t>();
  const auto nan = std::find_if(codes.begin(), codes.end(),
                                [](uint8_t code) { return (code & 0x7f) > kE4m3MaxCode; });
  if (nan == codes.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "weight_packed: expected finite numbers; got NaN at element ", nan - codes.begin()));
}

// Calls body(first element, count, scale) for each run of a row that shares a scale.
template <typename Body>
void ForEachRun(ScaleGrid grid, int64_t rows, int64_t cols, const double* scales, Body body) {
  const int64_t scales_a_row = CeilDivide(cols, grid.cols);
  for (int64_t r = 0; r < rows; ++r) {
    const double* row_scales = scales + r / grid.rows * scales_a_row;
    for (int64_t g = 0; g < scales_a_row; ++g) {
      const int64_t begin = g * grid.cols;
      body(r * cols + begin, std::min(grid.cols, cols - begin), row_scales[g]);
    }
  }
}

}  // namespace

std::unique_ptr<const NumberFormat> NumberFormat::Create(const Recipe& resolved, int64_t cols) {
  const ScaleRule rule = resolved.scale_rule.value_or(ScaleRule::kAmax);
  const Granularity granularity = resolved.granularity.value_or(Granularity::kGroup);
  const int64_t group = granularity == Granularity::kGroup ? resolved.group_size : cols;
  switch (resolved.format) {
    case Format::kMxfp4:
      return CreateMxfp4Format(rule);
    case Format::kNvfp4:
      return CreateNvfp4Format(rule);
    case Format::kInt2:
      return CreateIntegerFormat(2, group, rule);
    case Format::kInt3:
      return CreateIntegerFormat(3, group, rule);
    case Format::kInt4:
      return CreateIntegerFormat(4, group, rule);
    case Format::kInt8:
      return CreateIntegerFormat(8, group, rule);
    case Format::kFp8:
      return CreateFp8Format(granularity == Granularity::kBlock128 ? ScaleGrid{kFp8Block, kFp8Block}
                                                                   : ScaleGrid{1, cols});
    case Format::kEntropyCoded:
    case Format::kGaussianGrid:
      break;
  }
  return nullptr;
}

void FakeQuantize(const NumberFormat& format, int64_t rows, int64_t cols, double* values) {
  const NumberFormat& rule = format.activation_format();
  const ScaleGrid grid = rule.grid();
  std::vector<double> scales(CeilDivide(rows, grid.rows) * CeilDivide(cols, grid.cols));
  const std::optional<float> global = rule.GlobalScale(MaxMagnitude(values, rows * cols));
  rule.ComputeScales(values, rows, cols, global, scales.data());
  std::vector<uint8_t> codes(std::min(grid.cols, cols));
  ForEachRun(grid, rows, cols, scales.data(), [&](int64_t begin, int64_t count, double scale) {
    rule.Round(values + begin, count, scale, codes.data());
    rule.Decode(codes.data(), count, scale, values + begin);
  });
}

absl::Status DecodeMatrix(const NumberFormat& format, const EncodedMatrix& encoded,
                          absl::Span<double> values) {
  const int64_t rows = encoded.rows;
  const int64_t cols = encoded.cols;
  const int bits = format.element_bits();
  if (rows < 1 || cols < 1 || rows > kMaxDimension || cols > kMaxDimension ||
      cols * bits % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("weight_shape: expected a matrix of whole bytes a row; got [", rows, ", ",
                     cols, "] of ", bits, "-bit elements"));
  }
  if (values.size() != static_cast<size_t>(rows * cols)) {
    return absl::InvalidArgumentError(
        absl::StrCat("values: expected room for ", rows * cols, " elements; got ", values.size()));
  }
  const ScaleGrid grid = format.grid();
  const int64_t scale_rows = CeilDivide(rows, grid.rows);
  const int64_t scale_cols = CeilDivide(cols, grid.cols);
  if (absl::Status status =
          CheckTensor("weight_packed", encoded.codes, format.packed_dtype(), rows, cols * bits / 8);
      !status.ok()) {
    return status;
  }
  if (absl::Status status =
          CheckTensor("weight_scale", encoded.scales, format.scale_dtype(), scale_rows, scale_cols);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckGlobal(format, encoded.global_scale); !status.ok()) return status;
  if (absl::Status status = CheckElements(encoded); !status.ok()) return status;

  std::vector<double> scales(scale_rows * scale_cols);
  format.UnpackScales(encoded.scales.bytes().data(), encoded.global_scale, absl::MakeSpan(scales));
  if (absl::Status status = CheckScales(scales); !status.ok()) return status;

  std::vector<uint8_t> codes(cols);
  const std::byte* packed = encoded.codes.bytes().data();
  for (int64_t r = 0; r < rows; ++r) {
    UnpackCodes(packed + r * (cols * bits / 8), bits, absl::MakeSpan(codes));
    ForEachRun(ScaleGrid{1, grid.cols}, 1, cols, scales.data() + r / grid.rows * scale_cols,
               [&](int64_t begin, int64_t count, double scale) {
                 format.Decode(codes.data() + begin, count, scale,
                               values.data() + r * cols + begin);
               });
  }
  return absl::OkStatus();
}

}  // namespace quantd::compute
