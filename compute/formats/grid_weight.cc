#include "compute/formats/grid_weight.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/formats/gaussian_grid.h"
#include "compute/formats/tensor_lookup.h"

namespace quantd::compute {
namespace {

// Scales are stored with the largest one just below 2^14, far from both ends of float16.
constexpr int kStoredExponent = 14;
constexpr int kMaxFloatExponent = 126;

// The sign of a column: the top bit of SplitMix64 (Steele, Lea and Flood 2014) number `column`.
bool IsFlipped(uint64_t seed, int64_t column) {
  uint64_t z = seed + (static_cast<uint64_t>(column) + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return ((z ^ (z >> 31)) >> 63) != 0;
}

std::vector<double> ColumnSigns(uint64_t seed, int64_t cols) {
  std::vector<double> signs(cols);
  for (int64_t c = 0; c < cols; ++c) signs[c] = IsFlipped(seed, c) ? -1.0 : 1.0;
  return signs;
}

// Sylvester's Hadamard matrix, not normalized, times `values`. The order of the sums is part of the
// format: readers get the same bits.
void Hadamard(double* values, int64_t size) {
  for (int64_t half = 1; half < size; half *= 2) {
    for (int64_t begin = 0; begin < size; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; ++i) {
        const double a = values[i];
        const double b = values[i + half];
        values[i] = a + b;
        values[i + half] = a - b;
      }
    }
  }
}

double RootMeanSquare(const double* values, int64_t count) {
  double largest = 0.0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(values[i]));
  if (largest == 0.0) return 0.0;
  // Relative to the largest, so that squares neither overflow nor vanish.
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += (values[i] / largest) * (values[i] / largest);
  return largest * std::sqrt(sum / static_cast<double>(count));
}

// The nearest point of the grid for each vector of a group; of equally near ones the first.
class Rounder {
 public:
  explicit Rounder(const GridSpec& spec)
      : dimension_(spec.dimension), grid_(GaussianGrid(spec.bits, spec.dimension)) {
    for (size_t i = 0; i < grid_.size(); i += dimension_) {
      double square = 0.0;
      for (int d = 0; d < dimension_; ++d) square += double{grid_[i + d]} * grid_[i + d];
      half_squares_.push_back(square / 2.0);
    }
  }

  void Round(const double* values, int64_t count, uint8_t* codes) const {
    for (int64_t begin = 0; begin < count / dimension_; begin += kBlock) {
      const int64_t size = std::min(kBlock, count / dimension_ - begin);
      RoundBlock(values + begin * dimension_, size, codes + begin);
    }
  }

 private:
  static constexpr int64_t kBlock = 64;

  // Least |c|^2 / 2 - <c, x>, the points in the outer loop so that the inner one vectorizes.
  void RoundBlock(const double* values, int64_t size, uint8_t* codes) const {
    double x[kBlock] = {};
    double y[kBlock] = {};
    double least[kBlock];
    double best[kBlock] = {};
    for (int64_t i = 0; i < size; ++i) {
      x[i] = values[i * dimension_];
      y[i] = dimension_ == 2 ? values[i * dimension_ + 1] : 0.0;
    }
    std::fill_n(least, kBlock, std::numeric_limits<double>::infinity());
    for (size_t k = 0; k < half_squares_.size(); ++k) {
      const double half_square = half_squares_[k];
      const double cx = grid_[k * dimension_];
      const double cy = dimension_ == 2 ? grid_[k * dimension_ + 1] : 0.0;
      const auto point = static_cast<double>(k);
      for (int64_t i = 0; i < kBlock; ++i) {
        const double distance = half_square - cx * x[i] - cy * y[i];
        const bool nearer = distance < least[i];
        best[i] = nearer ? point : best[i];
        least[i] = nearer ? distance : least[i];
      }
    }
    for (int64_t i = 0; i < size; ++i) codes[i] = static_cast<uint8_t>(best[i]);
  }

  const int dimension_;
  const absl::Span<const float> grid_;
  std::vector<double> half_squares_;
};

int64_t RowBytes(const GridSpec& spec, int64_t cols) { return cols * spec.bits / 8; }

// Code i of a row takes the bits from i * code_bits on, of each byte the lowest first.
void PackRow(absl::Span<const uint8_t> codes, int bits, uint8_t* packed) {
  uint32_t pending = 0;
  int count = 0;
  for (const uint8_t code : codes) {
    pending |= uint32_t{code} << count;
    for (count += bits; count >= 8; count -= 8, pending >>= 8) {
      *packed++ = static_cast<uint8_t>(pending);
    }
  }
}

void UnpackRow(const uint8_t* packed, int bits, absl::Span<uint8_t> codes) {
  uint32_t pending = 0;
  int count = 0;
  for (uint8_t& code : codes) {
    for (; count < bits; count += 8) pending |= uint32_t{*packed++} << count;
    code = static_cast<uint8_t>(pending & ((1u << bits) - 1));
    pending >>= bits;
    count -= bits;
  }
}

}  // namespace

GridSpec GridSpecOf(const Recipe& resolved) {
  return {.bits = static_cast<int>(resolved.rate_bits),
          .dimension = static_cast<int>(resolved.grid_dimension),
          .group_size = resolved.group_size,
          .seed = resolved.seed};
}

absl::StatusOr<std::shared_ptr<const GridWeight>> GridWeight::Quantize(
    const GridSpec& spec, absl::Span<const double> values, int64_t rows, int64_t cols) {
  if (cols % spec.group_size != 0 || values.size() != static_cast<size_t>(rows * cols)) {
    return absl::InvalidArgumentError(absl::StrCat("expected ", rows, " rows of a multiple of ",
                                                   spec.group_size, " columns; got ", cols,
                                                   " columns and ", values.size(), " values"));
  }
  const int64_t size = spec.group_size;
  std::vector<double> rms(rows * cols / size);
  for (size_t g = 0; g < rms.size(); ++g) {
    rms[g] = RootMeanSquare(values.data() + static_cast<int64_t>(g) * size, size);
  }
  int exponent = 0;
  std::frexp(*std::max_element(rms.begin(), rms.end()), &exponent);
  const int shift = std::clamp(kStoredExponent - exponent, -kMaxFloatExponent, kMaxFloatExponent);

  std::shared_ptr<GridWeight> weight(new GridWeight);
  weight->spec_ = spec;
  weight->rows_ = rows;
  weight->cols_ = cols;
  weight->global_ = std::ldexp(1.0f, shift);
  weight->codes_.resize(rows * cols / spec.dimension);
  const std::vector<double> signs = ColumnSigns(spec.seed, cols);
  const Rounder rounder(spec);
  std::vector<double> group(size);
  for (size_t g = 0; g < rms.size(); ++g) {
    const auto first = static_cast<int64_t>(g) * size;
    weight->scales_.push_back(FloatToF16(static_cast<float>(std::ldexp(rms[g], shift))));
    // Rounded values are divided by the scale that readers multiply with.
    const double scale = double{F16ToFloat(weight->scales_.back())} / weight->global_;
    const double factor = scale > 0.0 ? 1.0 / (scale * std::sqrt(static_cast<double>(size))) : 0.0;
    for (int64_t i = 0; i < size; ++i) group[i] = values[first + i] * signs[(first + i) % cols];
    Hadamard(group.data(), size);
    for (double& value : group) value *= factor;
    rounder.Round(group.data(), size, weight->codes_.data() + first / spec.dimension);
  }
  return weight;
}

absl::StatusOr<std::shared_ptr<const GridWeight>> GridWeight::Unpack(
    const GridSpec& spec, absl::Span<const NamedTensor> tensors, int64_t rows, int64_t cols) {
  const int64_t row_bytes = RowBytes(spec, cols);
  const auto packed = FindTensor(tensors, "weight_packed", DType::kU8, {rows, row_bytes});
  if (!packed.ok()) return packed.status();
  const auto scales =
      FindTensor(tensors, "weight_scale", DType::kF16, {rows, cols / spec.group_size});
  if (!scales.ok()) return scales.status();
  const auto global = FindTensor(tensors, "weight_global_scale", DType::kF32, {1});
  if (!global.ok()) return global.status();
  const absl::Span<const uint16_t> stored = (*scales)->as<uint16_t>();
  for (size_t i = 0; i < stored.size(); ++i) {
    const float scale = F16ToFloat(stored[i]);
    if (std::isfinite(scale) && scale >= 0.0f) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("weight_scale: expected finite numbers >= 0; got ", scale, " at element ", i));
  }
  const float divisor = (*global)->as<float>()[0];
  if (!std::isnormal(divisor) || divisor < 0.0f) {
    return absl::InvalidArgumentError(
        absl::StrCat("weight_global_scale: expected a normal number > 0; got ", divisor));
  }

  std::shared_ptr<GridWeight> weight(new GridWeight);
  weight->spec_ = spec;
  weight->rows_ = rows;
  weight->cols_ = cols;
  weight->global_ = divisor;
  weight->scales_.assign(stored.begin(), stored.end());
  const int64_t row_codes = cols / spec.dimension;
  weight->codes_.resize(rows * row_codes);
  for (int64_t r = 0; r < rows; ++r) {
    UnpackRow((*packed)->as<uint8_t>().data() + r * row_bytes, spec.code_bits(),
              absl::MakeSpan(weight->codes_).subspan(r * row_codes, row_codes));
  }
  return weight;
}

absl::StatusOr<std::vector<NamedTensor>> GridWeight::Pack(int64_t first, int64_t rows) const {
  const int64_t row_bytes = RowBytes(spec_, cols_);
  const int64_t row_codes = cols_ / spec_.dimension;
  const int64_t row_scales = cols_ / spec_.group_size;
  absl::StatusOr<Tensor> packed = Tensor::Create(DType::kU8, {rows, row_bytes});
  absl::StatusOr<Tensor> scales = Tensor::Create(DType::kF16, {rows, row_scales});
  absl::StatusOr<Tensor> global = Tensor::Create(DType::kF32, {1});
  for (const absl::StatusOr<Tensor>* tensor : {&packed, &scales, &global}) {
    if (!tensor->ok()) return tensor->status();
  }
  for (int64_t r = 0; r < rows; ++r) {
    PackRow(absl::MakeConstSpan(codes_).subspan((first + r) * row_codes, row_codes),
            spec_.code_bits(), packed->as<uint8_t>().data() + r * row_bytes);
  }
  std::copy_n(scales_.begin() + first * row_scales, rows * row_scales,
              scales->as<uint16_t>().begin());
  global->as<float>()[0] = global_;
  std::vector<NamedTensor> tensors;
  tensors.push_back({"weight_packed", *std::move(packed)});
  tensors.push_back({"weight_scale", *std::move(scales)});
  tensors.push_back({"weight_global_scale", *std::move(global)});
  return tensors;
}

void GridWeight::Dequantize(int64_t first, int64_t rows, absl::Span<double> values) const {
  const int64_t size = spec_.group_size;
  const absl::Span<const float> grid = GaussianGrid(spec_.bits, spec_.dimension);
  const std::vector<double> signs = ColumnSigns(spec_.seed, cols_);
  for (int64_t begin = 0; begin < rows * cols_; begin += size) {
    double* group = values.data() + begin;
    const int64_t from = first * cols_ + begin;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t code = codes_[(from + i) / spec_.dimension];
      group[i] = grid[code * spec_.dimension + (from + i) % spec_.dimension];
    }
    Hadamard(group, size);
    const double scale =
        double{F16ToFloat(scales_[from / size])} / global_ / std::sqrt(static_cast<double>(size));
    for (int64_t i = 0; i < size; ++i) group[i] = group[i] * scale * signs[(begin + i) % cols_];
  }
}

}  // namespace quantd::compute
