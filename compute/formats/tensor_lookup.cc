#include "compute/formats/tensor_lookup.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace quantd::compute {
namespace {

bool Fits(absl::Span<const int64_t> shape, absl::Span<const int64_t> expected) {
  return std::equal(shape.begin(), shape.end(), expected.begin(), expected.end(),
                    [](int64_t is, int64_t should) { return should == kAnySize || is == should; });
}

std::string Shown(DType dtype, absl::Span<const int64_t> shape) {
  const auto append = [](std::string* out, int64_t size) {
    size == kAnySize ? out->append("any") : out->append(std::to_string(size));
  };
  return absl::StrCat(NameOf(dtype), " [", absl::StrJoin(shape, ", ", append), "]");
}

}  // namespace

absl::StatusOr<const Tensor*> FindTensor(absl::Span<const NamedTensor> tensors,
                                         absl::string_view name, DType dtype,
                                         absl::Span<const int64_t> shape) {
  for (const NamedTensor& named : tensors) {
    if (named.name != name) continue;
    const Tensor& tensor = named.tensor;
    if (tensor.dtype() == dtype && Fits(tensor.shape(), shape)) return &tensor;
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": expected ", Shown(dtype, shape), "; got ", Shown(tensor.dtype(), tensor.shape())));
  }
  return absl::InvalidArgumentError(absl::StrCat(name, ": missing"));
}

}  // namespace quantd::compute
