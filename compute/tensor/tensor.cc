#include "compute/tensor/tensor.h"

#include <Eigen/Core>
#include <bit>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace quantd::compute {
namespace {

constexpr size_t kAlignment = 64;  // a cache line, and an AVX-512 register

// Elements may lie anywhere in a message, so every access goes through memcpy; compilers turn it
// into one unaligned load.
template <typename T>
T Load(const std::byte* from, int64_t index) {
  T value;
  std::memcpy(&value, from + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

void HalvesToFloat(const std::byte* from, int64_t count, float* to) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
#endif
  for (; i < count; ++i) to[i] = F16ToFloat(Load<uint16_t>(from, i));
}

// Scans in runs: the inner loop has no early exit, so that it vectorizes.
template <typename Bits>
int64_t FindExponentOfOnes(const std::byte* data, int64_t count, Bits exponent) {
  constexpr int64_t kRun = 1024;
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t end = std::min(count, begin + kRun);
    Bits found = 0;
    for (int64_t i = begin; i < end; ++i) {
      found |= static_cast<Bits>((Load<Bits>(data, i) & exponent) == exponent);
    }
    if (found == 0) continue;
    for (int64_t i = begin; i < end; ++i) {
      if ((Load<Bits>(data, i) & exponent) == exponent) return i;
    }
  }
  return -1;
}

}  // namespace

absl::StatusOr<int64_t> DenseBytes(DType dtype, absl::Span<const int64_t> shape) {
  if (shape.size() > kMaxRank) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape: expected at most ", kMaxRank, " dimensions; got ", shape.size()));
  }
  for (int64_t dim : shape) {
    if (dim < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape: expected dimensions >= 0; got [", absl::StrJoin(shape, ", "), "]"));
    }
  }
  int64_t bytes = static_cast<int64_t>(SizeOf(dtype));
  for (int64_t dim : shape) {
    if (dim == 0) return 0;
  }
  for (int64_t dim : shape) {
    if (bytes > std::numeric_limits<int64_t>::max() / dim) {
      return absl::OutOfRangeError(absl::StrCat("shape: [", absl::StrJoin(shape, ", "), "] of ",
                                                NameOf(dtype), " overflows 64 bits"));
    }
    bytes *= dim;
  }
  return bytes;
}

absl::StatusOr<Tensor> Tensor::Create(DType dtype, std::vector<int64_t> shape) {
  absl::StatusOr<int64_t> size = DenseBytes(dtype, shape);
  if (!size.ok()) return size.status();
  Tensor tensor;
  tensor.dtype_ = dtype;
  tensor.elements_ = *size / static_cast<int64_t>(SizeOf(dtype));
  if (*size > 0) {
    if (*size > std::numeric_limits<int64_t>::max() - static_cast<int64_t>(kAlignment)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for a tensor of ", *size, " bytes"));
    }
    const size_t rounded = (static_cast<size_t>(*size) + kAlignment - 1) / kAlignment * kAlignment;
    auto* data = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
    if (data == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for a tensor of ", *size, " bytes"));
    }
    std::memset(data, 0, rounded);
    tensor.data_.reset(data);
  }
  tensor.shape_ = std::move(shape);
  return tensor;
}

absl::StatusOr<Tensor> Tensor::FromBytes(DType dtype, std::vector<int64_t> shape,
                                         absl::Span<const std::byte> bytes) {
  absl::StatusOr<int64_t> size = DenseBytes(dtype, shape);
  if (!size.ok()) return size.status();
  if (static_cast<size_t>(*size) != bytes.size()) {
    return absl::InvalidArgumentError(absl::StrCat("data: expected ", *size, " bytes for shape [",
                                                   absl::StrJoin(shape, ", "), "] of ",
                                                   NameOf(dtype), "; got ", bytes.size()));
  }
  absl::StatusOr<Tensor> tensor = Create(dtype, std::move(shape));
  if (tensor.ok() && *size > 0) std::memcpy(tensor->bytes().data(), bytes.data(), bytes.size());
  return tensor;
}

Tensor Tensor::Clone() const {
  absl::StatusOr<Tensor> copy = FromBytes(dtype_, shape_, bytes());
  if (!copy.ok()) std::abort();  // the shape was valid; like any failed `new`
  return *std::move(copy);
}

absl::Span<std::byte> Tensor::bytes() {
  return {data_.get(), static_cast<size_t>(elements_) * SizeOf(dtype_)};
}

absl::Span<const std::byte> Tensor::bytes() const {
  return {data_.get(), static_cast<size_t>(elements_) * SizeOf(dtype_)};
}

void Tensor::Free::operator()(std::byte* p) const { std::free(p); }

void ConvertToFloat(DType dtype, const std::byte* from, int64_t count, float* to) {
  assert(IsFloat(dtype));
  switch (dtype) {
    case DType::kF64:
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(Load<double>(from, i));
      break;
    case DType::kF32:
      if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
      break;
    case DType::kF16:
      HalvesToFloat(from, count, to);
      break;
    default:
      for (int64_t i = 0; i < count; ++i) to[i] = Bf16ToFloat(Load<uint16_t>(from, i));
      break;
  }
}

void ConvertToDouble(DType dtype, const std::byte* from, int64_t count, double* to) {
  assert(IsFloat(dtype));
  switch (dtype) {
    case DType::kF64:
      if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(double));
      break;
    case DType::kF32:
      for (int64_t i = 0; i < count; ++i) to[i] = Load<float>(from, i);
      break;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) to[i] = F16ToFloat(Load<uint16_t>(from, i));
      break;
    default:
      for (int64_t i = 0; i < count; ++i) to[i] = Bf16ToFloat(Load<uint16_t>(from, i));
      break;
  }
}

int64_t FindNonFinite(DType dtype, const std::byte* data, int64_t count) {
  assert(IsFloat(dtype));
  switch (dtype) {
    case DType::kF64:
      return FindExponentOfOnes<uint64_t>(data, count, 0x7ff0'0000'0000'0000);
    case DType::kF32:
      return FindExponentOfOnes<uint32_t>(data, count, 0x7f80'0000);
    case DType::kF16:
      return FindExponentOfOnes<uint16_t>(data, count, 0x7c00);
    default:
      return FindExponentOfOnes<uint16_t>(data, count, 0x7f80);
  }
}

uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  // NaN stays NaN: rounding could carry its payload into the exponent and make an infinity.
  if ((bits & 0x7fff'ffff) > 0x7f80'0000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

uint16_t FloatToF16(float value) { return Eigen::half_impl::float_to_half_rtne(value).x; }

float F16ToFloat(uint16_t bits) {
  return Eigen::half_impl::half_to_float(Eigen::half_impl::raw_uint16_to_half(bits));
}

}  // namespace quantd::compute
