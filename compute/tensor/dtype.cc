#include "compute/tensor/dtype.h"

#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace quantd::compute {
namespace {

struct DTypeFacts {
  DType dtype;
  size_t size;
  absl::string_view name;
};

// In the order of the enumeration.
constexpr std::array<DTypeFacts, 13> kFacts = {{
    {DType::kF64, 8, "F64"},
    {DType::kF32, 4, "F32"},
    {DType::kF16, 2, "F16"},
    {DType::kBF16, 2, "BF16"},
    {DType::kF8E4M3, 1, "F8_E4M3"},
    {DType::kF8E8M0, 1, "F8_E8M0"},
    {DType::kU8, 1, "U8"},
    {DType::kU16, 2, "U16"},
    {DType::kU32, 4, "U32"},
    {DType::kU64, 8, "U64"},
    {DType::kI8, 1, "I8"},
    {DType::kI32, 4, "I32"},
    {DType::kI64, 8, "I64"},
}};

}  // namespace

size_t SizeOf(DType dtype) { return kFacts[static_cast<size_t>(dtype)].size; }

absl::string_view NameOf(DType dtype) { return kFacts[static_cast<size_t>(dtype)].name; }

absl::StatusOr<DType> ParseDType(absl::string_view name) {
  for (const DTypeFacts& facts : kFacts) {
    if (facts.name == name) return facts.dtype;
  }
  std::string known;
  for (const DTypeFacts& facts : kFacts)
    absl::StrAppend(&known, known.empty() ? "" : ", ", facts.name);
  return absl::InvalidArgumentError(
      absl::StrCat("dtype: expected one of ", known, "; got '", name.substr(0, 32), "'"));
}

bool IsFloat(DType dtype) {
  return dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kF16 ||
         dtype == DType::kBF16;
}

}  // namespace quantd::compute
