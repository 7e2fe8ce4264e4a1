#include "compute/formats/lattice_weight.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/coding/integer_coder.h"
#include "compute/formats/tensor_lookup.h"

namespace quantd::compute {
namespace {

// Dead columns and columns of zeros cost next to nothing, so a small file may stand for a large
// matrix, but not for an arbitrary one: a segment of 2^18 codes brings 136 bytes, a dead column 2.
constexpr int64_t kMaxWeightsAByte = 8192;
// Scales are stored with the largest one just below 2^14, far from both ends of float16.
constexpr int kStoredExponent = 14;
constexpr int kMaxFloatExponent = 126;

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// Dimensions up to 65536 need no wider indices.
DType IndexType(int64_t cols) { return cols <= (1 << 16) ? DType::kU16 : DType::kU32; }

absl::Status CheckDeadColumns(absl::Span<const int64_t> dead, int64_t cols) {
  int64_t last = -1;
  for (const int64_t column : dead) {
    if (column <= last || column >= cols) {
      return Bad("dead_columns: expected ascending indices below ", cols, "; got ", column,
                 " after ", last);
    }
    last = column;
  }
  return absl::OkStatus();
}

int64_t RowsOf(const std::vector<LatticeWeight::CodedRows>& coded) {
  int64_t rows = 0;
  for (const LatticeWeight::CodedRows& each : coded) rows += each.rows;
  return rows;
}

absl::Status CheckSize(absl::string_view what, size_t size, int64_t expected) {
  if (size == static_cast<size_t>(expected)) return absl::OkStatus();
  return Bad(what, ": expected ", expected, " elements; got ", size);
}

// The power of two that brings the largest magnitude to [2^13, 2^14).
absl::StatusOr<int> StoredShift(absl::string_view what, absl::Span<const double> scales) {
  double largest = 0.0;
  for (const double scale : scales) {
    if (!std::isfinite(scale)) return Bad(what, ": expected finite numbers; got ", scale);
    largest = std::max(largest, std::abs(scale));
  }
  int exponent = 0;
  std::frexp(largest, &exponent);
  return largest > 0.0 ? kStoredExponent - exponent : 0;
}

absl::StatusOr<std::vector<uint16_t>> Store(absl::string_view what, absl::Span<const double> scales,
                                            int shift) {
  std::vector<uint16_t> stored;
  stored.reserve(scales.size());
  for (const double scale : scales) {
    stored.push_back(FloatToF16(static_cast<float>(std::ldexp(scale, shift))));
    if (!std::isfinite(F16ToFloat(stored.back()))) return Bad(what, ": too large: ", scale);
  }
  return stored;
}

absl::Status CheckScales(absl::string_view what, absl::Span<const uint16_t> scales) {
  for (size_t i = 0; i < scales.size(); ++i) {
    const float scale = F16ToFloat(scales[i]);
    if (!std::isfinite(scale)) {
      return Bad(what, ": expected finite numbers; got ", scale, " at element ", i);
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::StatusOr<Tensor> TensorOf(DType dtype, const std::vector<int64_t>& shape,
                                absl::Span<const T> from) {
  return Tensor::FromBytes(
      dtype, shape, {reinterpret_cast<const std::byte*>(from.data()), from.size() * sizeof(T)});
}

absl::StatusOr<Tensor> IndexTensor(absl::Span<const int64_t> indices, int64_t cols) {
  const auto count = static_cast<int64_t>(indices.size());
  if (IndexType(cols) == DType::kU16) {
    const std::vector<uint16_t> narrow(indices.begin(), indices.end());
    return TensorOf<uint16_t>(DType::kU16, {count}, narrow);
  }
  const std::vector<uint32_t> wide(indices.begin(), indices.end());
  return TensorOf<uint32_t>(DType::kU32, {count}, wide);
}

std::vector<int64_t> Indices(const Tensor& tensor) {
  if (tensor.dtype() == DType::kU16) {
    return {tensor.as<uint16_t>().begin(), tensor.as<uint16_t>().end()};
  }
  return {tensor.as<uint32_t>().begin(), tensor.as<uint32_t>().end()};
}

// The tensors of a packed weight, their dtypes and ranks checked.
struct Packed {
  const Tensor* stream = nullptr;
  const Tensor* offsets = nullptr;
  const Tensor* frequencies = nullptr;
  const Tensor* escapes = nullptr;
  const Tensor* row_scale = nullptr;
  const Tensor* col_scale = nullptr;
  const Tensor* global = nullptr;
  const Tensor* dead_columns = nullptr;

  int64_t bytes() const {
    int64_t sum = 0;
    for (const Tensor* tensor :
         {stream, offsets, frequencies, escapes, row_scale, col_scale, global, dead_columns}) {
      sum += static_cast<int64_t>(tensor->bytes().size());
    }
    return sum;
  }
};

absl::StatusOr<Packed> FindAll(absl::Span<const NamedTensor> tensors, int64_t rows, int64_t cols) {
  Packed packed;
  absl::Status status;
  const auto find = [&](absl::string_view name, DType dtype, const std::vector<int64_t>& shape) {
    const absl::StatusOr<const Tensor*> found = FindTensor(tensors, name, dtype, shape);
    status.Update(found.status());
    return found.ok() ? *found : nullptr;
  };
  packed.dead_columns = find("dead_columns", IndexType(cols), {kAnySize});
  if (!status.ok()) return status;
  const int64_t live = cols - packed.dead_columns->dim(0);
  if (live < 0) {
    return Bad("dead_columns: expected at most ", cols, " elements; got ", cols - live);
  }
  packed.stream = find("z_stream", DType::kU8, {kAnySize});
  packed.offsets = find("z_segment_offset", DType::kU32, {kAnySize, 2});
  packed.frequencies = find("z_frequency", DType::kU16, {kAnySize});
  packed.escapes = find("z_escape", DType::kI32, {kAnySize});
  packed.row_scale = find("row_scale", DType::kF16, {rows});
  packed.col_scale = find("col_scale", DType::kF16, {live});
  packed.global = find("weight_global_scale", DType::kF32, {1});
  if (!status.ok()) return status;
  return packed;
}

}  // namespace

absl::StatusOr<std::vector<double>> LatticeWeight::AsStored(absl::Span<const double> scales) {
  const absl::StatusOr<int> shift = StoredShift("scales", scales);
  if (!shift.ok()) return shift.status();
  const absl::StatusOr<std::vector<uint16_t>> stored = Store("scales", scales, *shift);
  if (!stored.ok()) return stored.status();
  std::vector<double> rounded;
  rounded.reserve(stored->size());
  for (const uint16_t scale : *stored) {
    rounded.push_back(std::ldexp(double{F16ToFloat(scale)}, -*shift));
  }
  return rounded;
}

int64_t LatticeWeight::SideBits(int64_t rows, int64_t cols, int64_t dead) {
  const auto index_bytes = static_cast<int64_t>(SizeOf(IndexType(cols)));
  return 16 * (rows + cols - dead) + 8 * index_bytes * dead + 32;
}

absl::StatusOr<std::shared_ptr<const LatticeWeight>> LatticeWeight::Create(Parts parts) {
  const int64_t live = parts.cols - static_cast<int64_t>(parts.dead_columns.size());
  absl::Status status = CheckDeadColumns(parts.dead_columns, parts.cols);
  if (parts.coded.empty()) {
    status.Update(CheckSize("codes", parts.codes.size(), parts.rows * live));
  } else {
    status.Update(CheckSize("coded rows", RowsOf(parts.coded), parts.rows));
  }
  status.Update(CheckSize("row_scale", parts.row_scale.size(), parts.rows));
  status.Update(CheckSize("spacing", parts.spacing.size(), live));
  status.Update(CheckSize("col_scale", parts.col_scale.size(), live));
  if (!status.ok()) return status;
  std::vector<double> col_scale(live);
  for (int64_t c = 0; c < live; ++c) col_scale[c] = parts.spacing[c] * parts.col_scale[c];

  const absl::StatusOr<int> row_shift = StoredShift("row_scale", parts.row_scale);
  if (!row_shift.ok()) return row_shift.status();
  const absl::StatusOr<int> col_shift = StoredShift("col_scale", col_scale);
  if (!col_shift.ok()) return col_shift.status();
  // Beyond the range of the global, small column scales lose bits.
  const int shift = std::clamp(*row_shift + *col_shift, -kMaxFloatExponent, kMaxFloatExponent);
  absl::StatusOr<std::vector<uint16_t>> rows = Store("row_scale", parts.row_scale, *row_shift);
  if (!rows.ok()) return rows.status();
  absl::StatusOr<std::vector<uint16_t>> cols = Store("col_scale", col_scale, shift - *row_shift);
  if (!cols.ok()) return cols.status();

  std::shared_ptr<LatticeWeight> weight(new LatticeWeight);
  weight->codes_ = std::move(parts.codes);
  weight->coded_ = std::move(parts.coded);
  weight->row_scale_ = *std::move(rows);
  weight->col_scale_ = *std::move(cols);
  weight->global_ = std::ldexp(1.0f, shift);
  weight->dead_columns_ = std::move(parts.dead_columns);
  return weight;
}

absl::StatusOr<std::shared_ptr<const LatticeWeight>> LatticeWeight::Unpack(
    absl::Span<const NamedTensor> tensors, int64_t rows, int64_t cols) {
  const absl::StatusOr<Packed> packed = FindAll(tensors, rows, cols);
  if (!packed.ok()) return packed.status();
  if (rows * cols > kMaxWeightsAByte * packed->bytes()) {
    return Bad("weight_shape: expected at most ", kMaxWeightsAByte, " weights a byte; got ", rows,
               " x ", cols, " in ", packed->bytes(), " bytes");
  }
  const absl::Span<const uint16_t> row_scale = packed->row_scale->as<uint16_t>();
  const absl::Span<const uint16_t> col_scale = packed->col_scale->as<uint16_t>();
  const float global = packed->global->as<float>()[0];
  absl::Status status = CheckScales("row_scale", row_scale);
  status.Update(CheckScales("col_scale", col_scale));
  if (!std::isnormal(global) || global < 0.0f) {
    status.Update(Bad("weight_global_scale: expected a normal number > 0; got ", global));
  }
  std::vector<int64_t> dead_columns = Indices(*packed->dead_columns);
  status.Update(CheckDeadColumns(dead_columns, cols));
  if (!status.ok()) return status;
  const CodedIntegersView coded(packed->stream->bytes(), packed->offsets->as<uint32_t>(),
                                packed->frequencies->as<uint16_t>(),
                                packed->escapes->as<int32_t>());
  absl::StatusOr<std::vector<int32_t>> codes =
      DecodeIntegers(coded, rows, static_cast<int64_t>(col_scale.size()));
  if (!codes.ok()) return codes.status();

  std::shared_ptr<LatticeWeight> weight(new LatticeWeight);
  weight->codes_ = *std::move(codes);
  weight->row_scale_.assign(row_scale.begin(), row_scale.end());
  weight->col_scale_.assign(col_scale.begin(), col_scale.end());
  weight->global_ = global;
  weight->dead_columns_ = std::move(dead_columns);
  return weight;
}

absl::Span<const int32_t> LatticeWeight::codes() const {
  std::call_once(decoded_, [this] {
    if (coded_.empty()) return;
    codes_.reserve(rows() * live_cols());
    for (const CodedRows& each : coded_) {
      // What an encoder of this process made decodes.
      const std::vector<int32_t> layer = DecodeIntegers(each.coded, each.rows, live_cols()).value();
      codes_.insert(codes_.end(), layer.begin(), layer.end());
    }
  });
  return codes_;
}

const CodedIntegers* LatticeWeight::FindCoded(int64_t first, int64_t rows) const {
  int64_t begin = 0;
  for (const CodedRows& each : coded_) {
    if (begin == first && each.rows == rows) return &each.coded;
    begin += each.rows;
  }
  return nullptr;
}

absl::StatusOr<std::vector<NamedTensor>> LatticeWeight::Pack(int64_t first, int64_t rows) const {
  const CodedIntegers* coded = FindCoded(first, rows);
  CodedIntegers made;
  if (coded == nullptr) {
    const int64_t live = live_cols();
    absl::StatusOr<CodedIntegers> encoded =
        EncodeIntegers(codes().subspan(first * live, rows * live), live);
    if (!encoded.ok()) return encoded.status();
    made = *std::move(encoded);
    coded = &made;
  }
  std::vector<NamedTensor> tensors;
  absl::Status status;
  const auto add = [&](const char* name, absl::StatusOr<Tensor> tensor) {
    status.Update(tensor.status());
    if (tensor.ok()) tensors.push_back({name, *std::move(tensor)});
  };
  const auto size = [](const auto& values) { return static_cast<int64_t>(values.size()); };
  add("z_stream", TensorOf<std::byte>(DType::kU8, {size(coded->stream)}, coded->stream));
  add("z_segment_offset", TensorOf<uint32_t>(DType::kU32, {size(coded->segment_offsets) / 2, 2},
                                             coded->segment_offsets));
  add("z_frequency",
      TensorOf<uint16_t>(DType::kU16, {size(coded->frequencies)}, coded->frequencies));
  add("z_escape", TensorOf<int32_t>(DType::kI32, {size(coded->escapes)}, coded->escapes));
  add("row_scale", TensorOf<uint16_t>(DType::kF16, {rows},
                                      absl::MakeConstSpan(row_scale_).subspan(first, rows)));
  add("col_scale", TensorOf<uint16_t>(DType::kF16, {live_cols()}, col_scale_));
  add("weight_global_scale", TensorOf<float>(DType::kF32, {1}, {global_}));
  add("dead_columns", IndexTensor(dead_columns_, cols()));
  if (!status.ok()) return status;
  return tensors;
}

void LatticeWeight::Dequantize(int64_t first, int64_t rows, absl::Span<double> values) const {
  const int64_t live = live_cols();
  const int64_t width = cols();
  std::vector<int64_t> column(live);  // of each live one
  std::vector<double> col_scale(live);
  auto dead = dead_columns_.begin();
  int64_t next = 0;
  for (int64_t c = 0; c < live; ++c, ++next) {
    for (; dead != dead_columns_.end() && *dead == next; ++dead) ++next;
    column[c] = next;
    col_scale[c] = double{F16ToFloat(col_scale_[c])} / global_;
  }
  std::fill(values.begin(), values.end(), 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    const double row_scale = F16ToFloat(row_scale_[first + r]);
    const int32_t* row_codes = codes().data() + (first + r) * live;
    double* row = values.data() + r * width;
    for (int64_t c = 0; c < live; ++c) row[column[c]] = row_scale * col_scale[c] * row_codes[c];
  }
}

}  // namespace quantd::compute
