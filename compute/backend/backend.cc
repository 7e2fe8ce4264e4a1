#include "compute/backend/backend.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace quantd::compute {

absl::StatusOr<std::unique_ptr<DeviceRegion>> Backend::OpenRegion(absl::string_view /*handle*/,
                                                                  int64_t /*bytes*/) {
  return absl::UnimplementedError(
      absl::StrCat(Describe().name, " has no memory that processes hand over"));
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
