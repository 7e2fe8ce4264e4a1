#include "compute/backend/cuda/conjugate_gradients.h"

#include <vector>

#include "compute/backend/cuda/conjugate_gradient_kernels.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"

namespace quantd::compute {
namespace {

constexpr double kLeastResidual = 1e-26;  // squared
// Steps that are queued before their outcome is looked at, and how often.
constexpr int kSteps = 12;
constexpr int kMaxGroups = 6;

}  // namespace

absl::StatusOr<bool> SolveByConjugateGradients(CudaStream& stream, int64_t size,
                                               const double* matrix, double* right) {
  const auto vectors = DeviceBuffer<double>::Allocate(stream, 5 * size);
  if (!vectors.ok()) return vectors.status();
  const auto state = DeviceBuffer<ConjugateState>::Allocate(stream, 1);
  if (!state.ok()) return state.status();
  double* const at = vectors->data();
  const ConjugateVectors v = {.solution = at,
                              .residual = at + size,
                              .direction = at + 2 * size,
                              .product = at + 3 * size,
                              .inverse_diagonal = at + 4 * size};
  absl::Status status =
      ToStatus(LaunchConjugateStart(stream.get(), size, matrix, right, v, state->data()),
               "conjugate gradients");
  for (int group = 0; group < kMaxGroups; ++group) {
    if (status.ok()) status = stream.CheckCancelled();
    for (int step = 0; step < kSteps && status.ok(); ++step) {
      status = ToStatus(
          LaunchConjugateStep(stream.get(), size, matrix, kLeastResidual, v, state->data()),
          "conjugate gradients");
    }
    if (!status.ok()) return status;
    const absl::StatusOr<std::vector<ConjugateState>> now = CopyToHost(stream, state->data(), 1);
    if (!now.ok()) return now.status();
    if (now->front().broken != 0) return false;
    if (now->front().residual > kLeastResidual * now->front().first) continue;
    status = ToStatus(cudaMemcpyAsync(right, v.solution, size * sizeof(double),
                                      cudaMemcpyDeviceToDevice, stream.get()),
                      "conjugate gradients");
    if (!status.ok()) return status;
    return true;
  }
  return false;
}

}  // namespace quantd::compute
