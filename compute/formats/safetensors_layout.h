#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// A safetensors file to be: its first bytes, and the tensors whose bytes follow in this order.
struct SafetensorsLayout {
  std::string header;  // length, JSON, padding
  std::vector<const NamedTensor*> order;
};

// INVALID_ARGUMENT for a name that occurs twice, is reserved or is no UTF-8.
absl::StatusOr<SafetensorsLayout> LayOutSafetensors(
    absl::Span<const NamedTensor* const> tensors,
    const std::map<std::string, std::string>& metadata);

}  // namespace quantd::compute
