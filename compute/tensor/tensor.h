#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/tensor/dtype.h"

namespace quantd::compute {

// Limits that hold for every tensor that enters the library.
inline constexpr int kMaxRank = 4;
inline constexpr int64_t kMaxDimension = int64_t{1} << 20;

// Bytes of a dense tensor. INVALID_ARGUMENT for a rank above kMaxRank or a negative dimension,
// OUT_OF_RANGE where the product overflows.
absl::StatusOr<int64_t> DenseBytes(DType dtype, absl::Span<const int64_t> shape);

// A dense row-major tensor in host memory, 64-byte aligned. Owns its bytes; movable, not copyable.
// Thread-compatible.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = default;

  // Zero-filled. Errors: those of DenseBytes; RESOURCE_EXHAUSTED where memory is short.
  static absl::StatusOr<Tensor> Create(DType dtype, std::vector<int64_t> shape);
  // A copy of `bytes`, whose size must fit the shape (else INVALID_ARGUMENT).
  static absl::StatusOr<Tensor> FromBytes(DType dtype, std::vector<int64_t> shape,
                                          absl::Span<const std::byte> bytes);

  Tensor Clone() const;

  DType dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t dim(int axis) const { return shape_[axis]; }
  int64_t elements() const { return elements_; }
  bool empty() const { return elements_ == 0; }

  absl::Span<std::byte> bytes();
  absl::Span<const std::byte> bytes() const;

  // The elements as T, whose size must be the dtype's. U8 serves the one-byte dtypes.
  template <typename T>
  absl::Span<T> as() {
    return {reinterpret_cast<T*>(bytes().data()), static_cast<size_t>(elements_)};
  }
  template <typename T>
  absl::Span<const T> as() const {
    return {reinterpret_cast<const T*>(bytes().data()), static_cast<size_t>(elements_)};
  }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };

  DType dtype_ = DType::kF32;
  std::vector<int64_t> shape_;
  int64_t elements_ = 0;
  std::unique_ptr<std::byte[], Free> data_;
};

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

// Converts `count` elements of a float dtype (IsFloat) to float or double. Never fails; NaN and Inf
// stay what they are.
void ConvertToFloat(DType dtype, const std::byte* from, int64_t count, float* to);
void ConvertToDouble(DType dtype, const std::byte* from, int64_t count, double* to);

// Index of the first NaN or Inf among `count` elements of a float dtype, or -1.
int64_t FindNonFinite(DType dtype, const std::byte* data, int64_t count);

// Round to nearest even.
uint16_t FloatToBf16(float value);
float Bf16ToFloat(uint16_t bits);
uint16_t FloatToF16(float value);
float F16ToFloat(uint16_t bits);

}  // namespace quantd::compute
