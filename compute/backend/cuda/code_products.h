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
  // `weight` >= 0: R.
  virtual absl::Status Gram(const double* weight, double* gram) = 0;
  // energies_r = [Z diag(scale) moment diag(scale) Z^T]_rr for a symmetric moment, C x C. `scale`:
  // C.
  virtual absl::Status Energies(const double* scale, const double* moment, double* energies) = 0;
};

// In float64, for any codes. `codes` must outlive it.
std::unique_ptr<CodeProducts> NewDoubleCodeProducts(CudaStream& stream, const DeviceTensor& codes);

}  // namespace quantd::compute
