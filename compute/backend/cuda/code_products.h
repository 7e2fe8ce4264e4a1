#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"

namespace quantd::compute {

// The two products that fitting the scales of integers Z (R x C, kept C x R) is made of. Pointers
// are to the device.
class CodeProducts {
 public:
  virtual ~CodeProducts() = default;

  // gram = the lower triangle of Z^T diag(weight) Z, C x C row-major; the rest is undefined.
  // `weight`: R, between 0 and `largest_weight`.
  virtual absl::Status Gram(const double* weight, double largest_weight, double* gram) = 0;
  // energies_r = [Z diag(scale) moment diag(scale) Z^T]_rr for a symmetric moment, C x C. `scale`:
  // C.
  virtual absl::Status Energies(const double* scale, const double* moment, double* energies) = 0;
};

// `codes` must outlive what the two return. In 8-bit integers where the codes allow it, else in
// float64.
absl::StatusOr<std::unique_ptr<CodeProducts>> NewCodeProducts(CudaStream& stream,
                                                              const DeviceTensor& codes);
// In float64.
std::unique_ptr<CodeProducts> NewDoubleCodeProducts(CudaStream& stream, const DeviceTensor& codes);

}  // namespace quantd::compute
