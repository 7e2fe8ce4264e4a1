#include "compute/stages/method.h"

#include "absl/strings/str_cat.h"
#include "compute/stages/rtn.h"

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

absl::StatusOr<const QuantizationMethod*> FindMethod(Method method) {
  switch (method) {
    case Method::kRtn:
      return &RtnMethod();
    case Method::kGptq:
    case Method::kWaterSic:
      break;
  }
  return absl::UnimplementedError(absl::StrCat("method: expected rtn; got ", NameOf(method),
                                               ", which this build does not have"));
}

}  // namespace quantd::compute
