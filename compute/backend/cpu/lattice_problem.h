#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// The ops of Backend around WaterSIC's cancellation, on the CPU. Sums run in a fixed order: the
// same bits on any number of threads. Shapes were checked.
absl::StatusOr<DeviceTensor> CpuSubmatrix(WorkerPool& pool, Stream& stream,
                                          const DeviceTensor& matrix,
                                          absl::Span<const int64_t> rows,
                                          absl::Span<const int64_t> columns);
absl::StatusOr<std::vector<double>> CpuColumnEnergies(WorkerPool& pool, Stream& stream,
                                                      const DeviceTensor& matrix);
absl::StatusOr<std::vector<double>> CpuRowEnergies(WorkerPool& pool, Stream& stream,
                                                   const DeviceTensor& matrix);
absl::StatusOr<MomentFactor> CpuFactorMoment(WorkerPool& pool, Stream& stream,
                                             const DeviceTensor& moment, double added);
absl::StatusOr<LatticeProblem> CpuPrepareLattice(WorkerPool& pool, Stream& stream,
                                                 const LatticeInputs& inputs);
absl::StatusOr<LatticeCodes> CpuCancelSuccessively(WorkerPool& pool, Stream& stream,
                                                   const MomentFactor& factor,
                                                   const DeviceTensor& target, double spacing);
absl::StatusOr<DeviceTensor> CpuDecodeLattice(WorkerPool& pool, Stream& stream,
                                              const DeviceTensor& codes,
                                              const std::vector<double>& row_scale,
                                              const std::vector<double>& column_scale,
                                              absl::Span<const int64_t> columns, int64_t cols);

}  // namespace quantd::compute
