#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/tensor/dtype.h"

namespace quantd::compute {

// A running sum of products of tokens in float64, and behind it the open slice of the token stream:
// at most kSliceTokens rows that wait to be folded into it. One for each kind of sum and device.
// Errors are those of the device; after one the sum is lost. Thread-compatible.
class TokenSum {
 public:
  virtual ~TokenSum() = default;
  virtual int64_t rows() const = 0;  // of the open slice
  // Puts finite rows of a float dtype behind those of the open slice, where they fit. `paired`:
  // their left factors, of paired kinds alone. The memory is free for reuse when it returns.
  virtual absl::Status Append(DType dtype, const std::byte* rows, const std::byte* paired,
                              int64_t count) = 0;
  // The same with rows as Rows() gave them.
  virtual absl::Status Resume(absl::Span<const double> rows) = 0;
  // Adds the slice's products to the sum and begins a new slice.
  virtual absl::Status Fold() = 0;
  virtual absl::StatusOr<std::vector<double>> Sum() = 0;  // as SecondMoment::sum()
  // Of the open slice, as SecondMoment::pending().
  virtual absl::StatusOr<std::vector<double>> Rows() = 0;
};

}  // namespace quantd::compute
