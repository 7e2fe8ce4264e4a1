#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/transform_kernels.h"

namespace quantd::compute {

// Backend::SolveTransforms. Operands were checked.
absl::StatusOr<TransformSolution> CudaSolveTransforms(CudaStream& stream,
                                                      const TransformProblem& problem);

// What solving a layer's transforms, all at once or one after the other, is made of.

// A layer's transforms, C/B x B x B, and what became of each.
struct TransformStack {
  int size = 0;  // B
  int64_t blocks = 0;
  NewTensor<float> tx;
  NewTensor<double> tw;
  DeviceBuffer<BlockOutcome> outcomes;  // all 0 until set
  DeviceBuffer<double> scratch;         // for all blocks at once

  static absl::StatusOr<TransformStack> Allocate(CudaStream& stream, int64_t size, int64_t cols);
};
// The transforms of a kind that no data changes: kHadamard or kRandom.
std::vector<float> DataFreeTransforms(TransformKind kind, int64_t size, int64_t cols,
                                      uint64_t seed);
// Sets tx and solves tw for it.
absl::Status SetTransforms(CudaStream& stream, absl::Span<const float> tx, TransformStack& stack);
// The error of the first of `order`'s blocks (empty: 0, 1, 2, ...) that has none; else the
// solution, whose traces are left out unless `data_aware`. Waits for the stream.
absl::StatusOr<TransformSolution> FinishTransforms(CudaStream& stream, bool data_aware,
                                                   double asked_damping,
                                                   absl::Span<const int64_t> order,
                                                   TransformStack stack);

// W_b^T W_b of every block of consecutive columns, as partial sums (BlockProblem::gram).
struct BlockGrams {
  DeviceBuffer<double> partial;
  int64_t parts = 1;
  int64_t part_stride = 0;
};
absl::StatusOr<BlockGrams> AllocateGrams(CudaStream& stream, int64_t rows, int size,
                                         int64_t blocks);
// Rows of `ld`.
absl::Status SumGrams(CudaStream& stream, const double* weight, int64_t rows, int64_t ld, int size,
                      int64_t blocks, const BlockGrams& grams);

// The mean of the squares of a matrix.
absl::StatusOr<double> MeanSquare(CudaStream& stream, const DeviceTensor& matrix);
// SpectrumFloor of the conditional solver, from every block's BlockProblem::energies.
absl::StatusOr<double> SpectrumFloorOf(CudaStream& stream, const DeviceBuffer<double>& energies);

}  // namespace quantd::compute
