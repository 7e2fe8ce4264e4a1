#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "compute/tensor/dtype.h"

namespace quantd::compute {

// A running sum of products of tokens in float64, and behind it the open slice of the token stream:
// at most kSliceTokens rows that wait to be folded into it. Thread-compatible.
class TokenSum {
 public:
  virtual ~TokenSum() = default;
  virtual int64_t rows() const = 0;  // of the open slice
  // Puts rows of a float dtype behind those of the open slice, where they fit. `paired`: their left
  // factors, of paired kinds alone.
  virtual void Append(DType dtype, const std::byte* rows, const std::byte* paired,
                      int64_t count) = 0;
  // The same with rows as Rows() gave them.
  virtual void Resume(absl::Span<const double> rows) = 0;
  // Adds the slice's products to the sum and begins a new slice.
  virtual void Fold() = 0;
  virtual std::vector<double> Sum() const = 0;   // as SecondMoment::sum()
  virtual std::vector<double> Rows() const = 0;  // of the open slice, as SecondMoment::pending()
};

}  // namespace quantd::compute
