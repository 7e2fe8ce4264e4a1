#include "compute/pipeline/pack.h"

#include <Eigen/Core>
#include <algorithm>
#include <utility>

#include "compute/tensor/checksum.h"

namespace quantd::compute {
namespace {

template <typename T>
absl::StatusOr<Tensor> Values(DType dtype, std::initializer_list<T> values) {
  return Tensor::FromBytes(dtype, {static_cast<int64_t>(values.size())},
                           absl::MakeConstSpan(reinterpret_cast<const std::byte*>(values.begin()),
                                               values.size() * sizeof(T)));
}

enum class Cost { kCodes, kScales, kTransform, kNone };

Cost CostOf(absl::string_view name) {
  if (name == "weight_shape" || name == "input_global_scale") return Cost::kNone;
  if (name == "input_transform") return Cost::kTransform;
  for (const absl::string_view scale :
       {"weight_scale", "weight_global_scale", "row_scale", "col_scale", "dead_columns"}) {
    if (name == scale) return Cost::kScales;
  }
  return Cost::kCodes;
}

}  // namespace

absl::StatusOr<std::vector<NamedTensor>> PackLayer(const EncodedWeight& encoded, int64_t first,
                                                   int64_t rows, int64_t cols,
                                                   const SharedTensors& shared) {
  absl::StatusOr<std::vector<NamedTensor>> packed = encoded.Pack(first, rows);
  if (!packed.ok()) return packed.status();
  std::vector<NamedTensor> tensors = *std::move(packed);
  absl::Status failure;
  const auto add = [&](const char* name, absl::StatusOr<Tensor> tensor) {
    if (tensor.ok()) {
      tensors.push_back({name, *std::move(tensor)});
    } else {
      failure.Update(tensor.status());
    }
  };
  add("weight_shape", Values<int64_t>(DType::kI64, {rows, cols}));
  if (!shared.input_transform.empty()) add("input_transform", shared.input_transform.Clone());
  if (shared.input_global_scale.has_value()) {
    add("input_global_scale", Values<float>(DType::kF32, {*shared.input_global_scale}));
  }
  if (!failure.ok()) return failure;
  return tensors;
}

std::optional<float> InputGlobalScale(const NumberFormat& format, const RowSample& sample,
                                      const Tensor& input_transform) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  if (sample.size() == 0) return std::nullopt;
  RowMajor x(sample.size(), sample.cols());
  for (int64_t i = 0; i < sample.size(); ++i) {
    std::copy_n(sample.rows()[i].values.data(), sample.cols(), x.row(i).data());
  }
  if (input_transform.empty()) {
    return format.activation_format().GlobalScale(x.cwiseAbs().maxCoeff());
  }
  float amax = 0.0f;
  const int64_t size = input_transform.dim(1);
  for (int64_t k = 0; k < input_transform.dim(0); ++k) {
    const Eigen::Map<const RowMajor> t(input_transform.as<float>().data() + k * size * size, size,
                                       size);
    const RowMajor transformed = x.middleCols(k * size, size) * t.transpose();
    amax = std::max(amax, transformed.cwiseAbs().maxCoeff());
  }
  return format.activation_format().GlobalScale(amax);
}

void AccountTensors(const std::vector<NamedTensor>& tensors, ErrorReport& report) {
  const double weights = static_cast<double>(report.rows) * static_cast<double>(report.cols);
  for (const NamedTensor& named : tensors) {
    const auto bytes = static_cast<int64_t>(named.tensor.bytes().size());
    const double bits = 8.0 * static_cast<double>(bytes) / weights;
    report.bytes += bytes;
    switch (CostOf(named.name)) {
      case Cost::kCodes:
        report.bits_per_weight_codes += bits;
        break;
      case Cost::kScales:
        report.bits_per_weight_scales += bits;
        break;
      case Cost::kTransform:
        report.bits_per_weight_transform += bits;
        break;
      case Cost::kNone:
        break;
    }
    Sha256 sha;
    sha.Update(named.tensor.bytes());
    report.tensor_digests[named.name] = ToHex(sha.Digest());
  }
  report.bits_per_weight = report.bits_per_weight_codes + report.bits_per_weight_scales +
                           report.bits_per_weight_transform;
}

}  // namespace quantd::compute
