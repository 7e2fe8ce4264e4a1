#include "compute/backend/backend.h"

#include <numeric>
#include <utility>

namespace quantd::compute {

WeightTotals TotalsOf(const WeightError& error) {
  return {.sum_squares = error.sum_squares,
          .output_energy = std::accumulate(error.by_row.begin(), error.by_row.end(), 0.0)};
}

absl::StatusOr<WeightTotals> Backend::MeasureWeightTotals(Stream& stream,
                                                          const DeviceTensor& weight,
                                                          const DeviceTensor& dequantized,
                                                          const DeviceTensor& second_moment) {
  const absl::StatusOr<WeightError> error =
      MeasureWeightError(stream, weight, dequantized, second_moment);
  if (!error.ok()) return error.status();
  return TotalsOf(*error);
}

absl::StatusOr<EncodedMatrix> DownloadEncoded(Backend& backend, Stream& stream,
                                              const QuantizedWeight& quantized) {
  absl::StatusOr<Tensor> codes = backend.Download(stream, quantized.codes);
  if (!codes.ok()) return codes.status();
  absl::StatusOr<Tensor> scales = backend.Download(stream, quantized.scales);
  if (!scales.ok()) return scales.status();
  return EncodedMatrix{.rows = quantized.decoded.dim(0),
                       .cols = quantized.decoded.dim(1),
                       .codes = *std::move(codes),
                       .scales = *std::move(scales),
                       .global_scale = quantized.global_scale};
}

}  // namespace quantd::compute
