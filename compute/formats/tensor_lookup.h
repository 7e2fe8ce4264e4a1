#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// A dimension that may have any size.
inline constexpr int64_t kAnySize = -1;

// The tensor of that name. INVALID_ARGUMENT where it is missing or has another dtype or shape.
absl::StatusOr<const Tensor*> FindTensor(absl::Span<const NamedTensor> tensors,
                                         absl::string_view name, DType dtype,
                                         absl::Span<const int64_t> shape);

}  // namespace quantd::compute
