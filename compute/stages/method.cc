#include "compute/stages/method.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/stages/gptq.h"
#include "compute/stages/higgs.h"
#include "compute/stages/rtn.h"
#include "compute/stages/watersic.h"

namespace quantd::compute {

absl::string_view NameOf(Outcome outcome) {
  switch (outcome) {
    case Outcome::kExact:
      return "EXACT";
    case Outcome::kDamped:
      return "DAMPED";
    case Outcome::kFallbackRtn:
      return "FALLBACK_RTN";
  }
  return "";
}

absl::Status SetQuantized(Backend& backend, Stream& stream, const NumberFormat& format,
                          QuantizedWeight quantized, LayerSolution& solution) {
  absl::StatusOr<EncodedMatrix> encoded = DownloadEncoded(backend, stream, quantized);
  if (!encoded.ok()) return encoded.status();
  solution.encoded = std::make_shared<const ScaledWeight>(format.grid(), *std::move(encoded));
  solution.dequantized = std::move(quantized.dequantized);
  solution.decoded = std::move(quantized.decoded);
  return absl::OkStatus();
}

absl::StatusOr<const QuantizationMethod*> FindMethod(Method method) {
  switch (method) {
    case Method::kRtn:
      return &RtnMethod();
    case Method::kGptq:
      return &GptqMethod();
    case Method::kWaterSic:
      return &WaterSicMethod();
    case Method::kHiggs:
      return &HiggsMethod();
  }
  return absl::UnimplementedError(absl::StrCat("method: number ", static_cast<int>(method),
                                               ", which this build does not have"));
}

}  // namespace quantd::compute
