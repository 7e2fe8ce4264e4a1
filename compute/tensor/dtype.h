#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quantd::compute {

// Element types of stored tensors; the names are those of safetensors.
enum class DType : uint8_t {
  kF64,
  kF32,
  kF16,     // IEEE binary16
  kBF16,    // upper half of an IEEE binary32
  kF8E4M3,  // FP8 E4M3FN: no infinities, 0x7f and 0xff are NaN
  kF8E8M0,  // power-of-two scale, bias 127, 0xff is NaN
  kU8,
  kU16,
  kU32,
  kU64,
  kI8,
  kI32,
  kI64,
};

size_t SizeOf(DType dtype);             // bytes of one element
absl::string_view NameOf(DType dtype);  // "BF16", "F8_E4M3", ...
// INVALID_ARGUMENT for an unknown name.
absl::StatusOr<DType> ParseDType(absl::string_view name);
// F64, F32, F16 and BF16: what weights and activations may be.
bool IsFloat(DType dtype);

}  // namespace quantd::compute
