#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/formats/number_format.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// The codes of a solved weight (the stacked rows of a fusion group), in whatever form its method
// chose, on the host. Immutable and thread-safe.
class EncodedWeight {
 public:
  virtual ~EncodedWeight() = default;
  // Rows [first, first + rows) as the tensors of docs/formats.md, without the layer prefix and
  // without those that every result has (weight_shape, input_transform, input_global_scale).
  // A layer of the group is such a range; it decodes without the rest of the group.
  virtual absl::StatusOr<std::vector<NamedTensor>> Pack(int64_t first, int64_t rows) const = 0;
};

// Codes and scales of a number format: weight_packed, weight_scale, weight_global_scale.
class ScaledWeight final : public EncodedWeight {
 public:
  // `grid` is the format's.
  ScaledWeight(ScaleGrid grid, EncodedMatrix encoded)
      : grid_rows_(grid.rows), encoded_(std::move(encoded)) {}

  // `first` is a multiple of the grid's rows.
  absl::StatusOr<std::vector<NamedTensor>> Pack(int64_t first, int64_t rows) const override;
  const EncodedMatrix& encoded() const { return encoded_; }

 private:
  int64_t grid_rows_;
  EncodedMatrix encoded_;
};

}  // namespace quantd::compute
