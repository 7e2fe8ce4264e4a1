#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/formats/format_spec.h"
#include "compute/recipe/recipe.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// Rows and columns of values that share one scale.
struct ScaleGrid {
  int64_t rows;
  int64_t cols;
};

// One number format with its scale rule: how a group of values becomes a scale and element codes,
// and back. Steps are apart, because RTN, GPTQ and activation quantization order them differently:
//   global = GlobalScale(amax of the tensor); scales = ComputeScales(values, global);
//   codes = Round(values, scale); values' = Decode(codes, scale).
// Codes are one byte an element here (packing is `PackCodes`), scales are the exact values that the
// stored scale decodes to, the global included: value = DecodeElement(code) * scale.
// Immutable and thread-safe. All inputs finite; outputs always finite.
class NumberFormat {
 public:
  virtual ~NumberFormat() = default;

  // For a resolved recipe and a matrix of `cols` columns. Null for the formats that are a method's
  // own (ImpliedFormat).
  static std::unique_ptr<const NumberFormat> Create(const Recipe& resolved, int64_t cols);

  // All of it as plain data, but for the rule of the global.
  virtual FormatSpec spec() const = 0;

  virtual ScaleGrid grid() const = 0;
  // How an engine quantizes the activations that meet weights of this format: the same elements
  // and stored scales, but with the scale rule that runs on the fly, token by token. Lives as long
  // as this object.
  virtual const NumberFormat& activation_format() const { return *this; }
  virtual int element_bits() const = 0;    // 2, 3, 4 or 8
  virtual DType scale_dtype() const = 0;   // as stored
  virtual DType packed_dtype() const = 0;  // of weight_packed: U8, or F8_E4M3
  // Bits of the element's and the scale's mantissa, for the predicted loss of FP formats (WUSH,
  // section 3); unset for integers.
  virtual std::optional<int> element_mantissa_bits() const = 0;
  virtual int scale_mantissa_bits() const = 0;

  // The tensor-wide divisor of stored scales (NVFP4: 448 * 6 / amax; MXFP4 `noclip`: 3), or unset
  // for formats without one. `amax` is the largest magnitude of the tensor or fusion group.
  virtual std::optional<float> GlobalScale(double amax) const = 0;

  // Scales of `rows` x `cols` row-major values: ceil(rows/grid.rows) x ceil(cols/grid.cols).
  virtual void ComputeScales(const double* values, int64_t rows, int64_t cols,
                             std::optional<float> global, double* scales) const = 0;
  // `count` values that share a scale.
  virtual void Round(const double* values, int64_t count, double scale, uint8_t* codes) const = 0;
  virtual void Decode(const uint8_t* codes, int64_t count, double scale, double* values) const = 0;

  // Stored form of scales, and back. A scale from ComputeScales survives exactly.
  virtual void PackScales(absl::Span<const double> scales, std::optional<float> global,
                          std::byte* packed) const = 0;
  virtual void UnpackScales(const std::byte* packed, std::optional<float> global,
                            absl::Span<double> scales) const = 0;
};

// A quantized matrix as it is stored: shapes and dtypes of the native result file.
struct EncodedMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  Tensor codes;   // weight_packed: rows x cols*bits/8
  Tensor scales;  // weight_scale: ceil(rows/grid.rows) x ceil(cols/grid.cols)
  std::optional<float> global_scale;
};

// Codes, one byte an element, to packed bytes and back: a little-endian stream of `bits` (2, 3, 4
// or 8) a code, so that element 0 has the lowest bits of byte 0. The codes fill whole bytes.
// Integers are in two's complement of that many bits.
void PackCodes(absl::Span<const uint8_t> codes, int bits, std::byte* packed);
void UnpackCodes(const std::byte* packed, int bits, absl::Span<uint8_t> codes);

// Quantizes row-major activations in place to what `format.activation_format()` decodes to, with
// scales (and where the format has one, the global) from the values themselves.
void FakeQuantize(const NumberFormat& format, int64_t rows, int64_t cols, double* values);

// Decodes an encoded matrix of untrusted origin. INVALID_ARGUMENT where a tensor does not have the
// shape or dtype that the format needs, or a scale, the global or an FP8 element is NaN, Inf or
// negative where that cannot be.
absl::Status DecodeMatrix(const NumberFormat& format, const EncodedMatrix& encoded,
                          absl::Span<double> values);

}  // namespace quantd::compute
