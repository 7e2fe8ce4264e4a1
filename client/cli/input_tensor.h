#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/byte_source.h"
#include "compute/formats/safetensors.h"

namespace quantd::cli {

// A float tensor in a safetensors file, not yet read.
struct InputTensor {
  std::string path;
  compute::SafetensorsEntry entry;
  // Why this tensor was taken although it was not asked for; empty otherwise.
  std::string remark;

  // Rows and columns of the matrix: leading dimensions are rows.
  int64_t rows() const;
  int64_t cols() const { return entry.shape.back(); }
  absl::StatusOr<std::unique_ptr<client::ByteSource>> Open() const;
};

enum class TensorRank { kMatrix, kMatrixOrMore, kAny };  // 2, at least 2, at least 1

// Picks the tensor `wanted`, or, where `wanted` is empty, the one called `usual`, or else the only
// one in the file. Errors: NOT_FOUND lists the file's tensors; INVALID_ARGUMENT where the tensor is
// no float tensor of that rank.
absl::StatusOr<InputTensor> PickTensor(const std::string& path, const std::string& wanted,
                                       const std::string& usual, TensorRank rank);

// The same error with the file's name in front, where it is not in the message yet.
absl::Status InFile(const std::string& path, const absl::Status& status);

// What the result's tensors are called. The weight "weight" has no prefix, "a.b.weight" has "a.b",
// any other name is the prefix itself. Characters that a layer_id may not hold become '_'.
std::string LayerIdOf(absl::string_view weight_name);

}  // namespace quantd::cli
