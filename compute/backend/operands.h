#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "compute/backend/backend.h"

// What every backend asks of the operands of an op before it computes: INVALID_ARGUMENT names the
// operand, what was expected and what came. Thread-safe.
namespace quantd::compute::operands {

absl::Status CheckUpload(const Tensor& tensor);
absl::Status CheckMatrix(const DeviceTensor& matrix);
absl::Status CheckSquare(const DeviceTensor& matrix);
absl::Status CheckSliceRows(const DeviceTensor& matrix, int64_t first, int64_t rows);
absl::Status CheckSubmatrix(const DeviceTensor& matrix, absl::Span<const int64_t> rows,
                            absl::Span<const int64_t> columns);
absl::Status CheckDiagonalBlocks(const DeviceTensor& moment, int64_t block_size);
absl::Status CheckTransformProblem(const TransformProblem& problem);
absl::Status CheckRoundToNearest(const BlockTransform& transform, const DeviceTensor& weight);
absl::Status CheckGptqProblem(const GptqProblem& problem);
absl::Status CheckWeightError(const DeviceTensor& weight, const DeviceTensor& dequantized,
                              const DeviceTensor& second_moment);
absl::Status CheckOutputs(const DeviceTensor& weight, const DeviceTensor& sample);
absl::Status CheckOutputError(const BlockTransform& transform, const DeviceTensor& decoded,
                              const DeviceTensor& sample, const DeviceTensor& outputs);
absl::Status CheckSpread(const BlockTransform& transform, const DeviceTensor& weight,
                         const DeviceTensor& block_moment);
absl::Status CheckMoment(const DeviceTensor& moment);
absl::Status CheckLattice(const LatticeInputs& inputs);
absl::Status CheckCancellation(const MomentFactor& factor, const DeviceTensor& target,
                               double spacing);
absl::Status CheckLatticeCodes(const LatticeProblem& problem, const DeviceTensor& codes,
                               const std::vector<double>& column_scale);
absl::Status CheckFitLatticeScales(const LatticeProblem& problem, const LatticeCodes& codes,
                                   const std::vector<double>& spacing);
// Codes of whole rows [first, first + rows), at least one value.
absl::Status CheckCodeRows(const DeviceTensor& codes, int64_t first, int64_t rows);
absl::Status CheckEncodeCodes(const DeviceTensor& codes, int64_t first, int64_t rows,
                              const CodingModel& model);
absl::Status CheckDecodeLattice(const DeviceTensor& codes, const std::vector<double>& row_scale,
                                const std::vector<double>& column_scale,
                                absl::Span<const int64_t> columns, int64_t cols);
absl::Status CheckDriftError(const DeviceTensor& weight, const DeviceTensor& dequantized,
                             const DeviceTensor& moment, const DeviceTensor& moment_hat,
                             const DeviceTensor& cross);

}  // namespace quantd::compute::operands
