#pragma once

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/formats/encoded_weight.h"
#include "compute/formats/number_format.h"
#include "compute/pipeline/pipeline.h"
#include "compute/second_moment/row_sample.h"
#include "compute/stages/report.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// What all layers of a group share.
struct SharedTensors {
  Tensor input_transform;                   // C/B x B x B, F32; empty for the identity
  std::optional<float> input_global_scale;  // NVFP4 with a sample
};

// Rows [first, first + rows) of a result with `cols` columns as the tensors of docs/formats.md,
// without the layer prefix.
absl::StatusOr<std::vector<NamedTensor>> PackLayer(const EncodedWeight& encoded, int64_t first,
                                                   int64_t rows, int64_t cols,
                                                   const SharedTensors& shared);

// The scale that maps the largest magnitude of the transformed sample to the format's largest
// value. Unset for an empty sample.
std::optional<float> InputGlobalScale(const NumberFormat& format, const RowSample& sample,
                                      const Tensor& input_transform);

// Bits and bytes of the packed tensors, and their SHA-256, into the report.
void AccountTensors(const std::vector<NamedTensor>& tensors, ErrorReport& report);

}  // namespace quantd::compute
