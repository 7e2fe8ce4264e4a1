#include "compute/backend/operands.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace quantd::compute::operands {
namespace {

absl::Status WrongShape(absl::string_view name, absl::string_view expected,
                        const DeviceTensor& tensor) {
  return absl::InvalidArgumentError(absl::StrCat(
      name, ": expected ", expected, "; got ",
      tensor.empty() ? "nothing" : absl::StrCat("[", absl::StrJoin(tensor.shape(), ", "), "]")));
}

absl::Status CheckMatrix(absl::string_view name, const DeviceTensor& tensor) {
  if (tensor.empty() || tensor.shape().size() != 2) return WrongShape(name, "a matrix", tensor);
  return absl::OkStatus();
}

absl::Status CheckSecondMoment(const DeviceTensor& moment, int64_t cols) {
  if (moment.empty()) return absl::OkStatus();
  const std::vector<int64_t>& shape = moment.shape();
  const bool full = shape.size() == 2 && shape[0] == cols && shape[1] == cols;
  const bool blocks = shape.size() == 3 && shape[1] == shape[2] && shape[0] * shape[1] == cols;
  if (full || blocks) return absl::OkStatus();
  return WrongShape("second_moment",
                    absl::StrCat("[", cols, ", ", cols, "] or diagonal blocks of it"), moment);
}

absl::Status CheckShape(absl::string_view name, const DeviceTensor& tensor, int64_t rows,
                        int64_t cols) {
  if (!tensor.empty() && tensor.shape() == std::vector<int64_t>{rows, cols}) {
    return absl::OkStatus();
  }
  return WrongShape(name, absl::StrCat("[", rows, ", ", cols, "]"), tensor);
}

absl::Status CheckSquare(absl::string_view name, const DeviceTensor& tensor) {
  if (absl::Status status = CheckMatrix(name, tensor); !status.ok()) return status;
  return CheckShape(name, tensor, tensor.dim(0), tensor.dim(0));
}

absl::Status CheckCount(absl::string_view name, size_t got, int64_t expected) {
  if (static_cast<int64_t>(got) == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": expected ", expected, " values; got ", got));
}

absl::Status CheckIndices(absl::string_view name, absl::Span<const int64_t> indices, int64_t size) {
  for (const int64_t index : indices) {
    if (index < 0 || index >= size) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": expected indices in [0, ", size, "); got ", index));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCodes(const DeviceTensor& codes) {
  if (absl::Status status = CheckMatrix("codes", codes); !status.ok()) return status;
  if (codes.dtype() == DType::kI32) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("codes: expected I32; got ", NameOf(codes.dtype())));
}

absl::Status CheckCodesOf(const LatticeProblem& problem, const DeviceTensor& codes,
                          const std::vector<double>& column_scale) {
  if (absl::Status status = CheckCodes(codes); !status.ok()) return status;
  absl::Status status = CheckCount("column scales", column_scale.size(), codes.dim(0));
  if (!status.ok()) return status;
  return CheckShape("correlation", problem.correlation, codes.dim(0), codes.dim(1));
}

absl::Status CheckGivenTransform(const Tensor& given, int64_t block_size, int64_t cols) {
  const std::vector<int64_t> shape = {cols / block_size, block_size, block_size};
  if (given.dtype() == DType::kF32 && given.shape() == shape) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("transform: expected F32 [", absl::StrJoin(shape, ", "), "]; got ",
                   NameOf(given.dtype()), " [", absl::StrJoin(given.shape(), ", "), "]"));
}

absl::Status CheckSample(const DeviceTensor& sample, int64_t cols) {
  if (!sample.empty() && sample.shape().size() == 2 && sample.dim(0) >= 1 &&
      sample.dim(1) == cols) {
    return absl::OkStatus();
  }
  return WrongShape("sample", absl::StrCat("tokens x ", cols), sample);
}

absl::Status CheckTransform(const BlockTransform& transform, int64_t cols) {
  if (transform.identity) return absl::OkStatus();
  const int64_t size = transform.block_size;
  for (const DeviceTensor* stack : {&transform.tx, &transform.tw}) {
    if (stack->empty() || size < 1 || cols % size != 0 ||
        stack->shape() != std::vector<int64_t>{cols / size, size, size}) {
      return WrongShape("transform",
                        absl::StrCat("blocks of ", size, " on the diagonal of ", cols, " columns"),
                        *stack);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSolverMoment(const TransformProblem& p) {
  const int64_t cols = p.weight.dim(1);
  const std::vector<int64_t> expected =
      p.solver == Solver::kConditional
          ? std::vector<int64_t>{cols, cols}
          : std::vector<int64_t>{cols / p.block_size, p.block_size, p.block_size};
  if (!p.second_moment.empty() && p.second_moment.shape() == expected) return absl::OkStatus();
  return WrongShape("second_moment", absl::StrCat("[", absl::StrJoin(expected, ", "), "]"),
                    p.second_moment);
}

}  // namespace

absl::Status CheckUpload(const Tensor& tensor) {
  if (IsFloat(tensor.dtype())) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("expected F64, F32, F16 or BF16; got ", NameOf(tensor.dtype())));
}

absl::Status CheckMatrix(const DeviceTensor& matrix) { return CheckMatrix("matrix", matrix); }

absl::Status CheckSquare(const DeviceTensor& matrix) { return CheckSquare("matrix", matrix); }

absl::Status CheckMoment(const DeviceTensor& moment) {
  return CheckSquare("second_moment", moment);
}

absl::Status CheckSliceRows(const DeviceTensor& matrix, int64_t first, int64_t rows) {
  if (absl::Status status = CheckMatrix(matrix); !status.ok()) return status;
  if (first >= 0 && rows >= 0 && first <= matrix.dim(0) - rows) return absl::OkStatus();
  return WrongShape("matrix", absl::StrCat("rows ", first, "..", first + rows), matrix);
}

absl::Status CheckSubmatrix(const DeviceTensor& matrix, absl::Span<const int64_t> rows,
                            absl::Span<const int64_t> columns) {
  absl::Status status = CheckMatrix(matrix);
  if (status.ok()) status = CheckIndices("rows", rows, matrix.dim(0));
  if (status.ok()) status = CheckIndices("columns", columns, matrix.dim(1));
  return status;
}

absl::Status CheckDiagonalBlocks(const DeviceTensor& moment, int64_t block_size) {
  const std::vector<int64_t>& shape = moment.shape();
  const bool square = !moment.empty() && (shape.size() == 2 || shape.size() == 3) &&
                      shape[shape.size() - 1] == shape[shape.size() - 2];
  if (square && block_size >= 1 && shape.back() % block_size == 0) return absl::OkStatus();
  return WrongShape("second_moment",
                    absl::StrCat("a square matrix, or a stack of them, of a multiple of ",
                                 block_size, " columns"),
                    moment);
}

absl::Status CheckTransformProblem(const TransformProblem& problem) {
  if (problem.kind == TransformKind::kIdentity) return absl::OkStatus();
  if (absl::Status status = CheckMatrix("weight", problem.weight); !status.ok()) return status;
  if (problem.block_size < 1 || problem.weight.dim(1) % problem.block_size != 0) {
    return WrongShape("weight", absl::StrCat("a multiple of ", problem.block_size, " columns"),
                      problem.weight);
  }
  return IsDataAware(problem.kind) ? CheckSolverMoment(problem) : absl::OkStatus();
}

absl::Status CheckRoundToNearest(const BlockTransform& transform, const DeviceTensor& weight) {
  if (absl::Status status = CheckMatrix("weight", weight); !status.ok()) return status;
  return CheckTransform(transform, weight.dim(1));
}

absl::Status CheckGptqProblem(const GptqProblem& problem) {
  if (absl::Status status = CheckMatrix("weight", problem.weight); !status.ok()) return status;
  const int64_t cols = problem.weight.dim(1);
  absl::Status status = CheckShape("second_moment", problem.second_moment, cols, cols);
  if (status.ok() && !problem.cross_moment.empty()) {
    status = CheckShape("cross_moment", problem.cross_moment, cols, cols);
  }
  const bool has_blocks =
      problem.transform != TransformKind::kIdentity || problem.given_transform != nullptr;
  if (status.ok() && has_blocks && (problem.block_size < 1 || cols % problem.block_size != 0)) {
    status = WrongShape("weight", absl::StrCat("a multiple of ", problem.block_size, " columns"),
                        problem.weight);
  }
  if (!status.ok() || problem.given_transform == nullptr) return status;
  return CheckGivenTransform(*problem.given_transform, problem.block_size, cols);
}

absl::Status CheckWeightError(const DeviceTensor& weight, const DeviceTensor& dequantized,
                              const DeviceTensor& second_moment) {
  if (absl::Status status = CheckMatrix("weight", weight); !status.ok()) return status;
  if (!dequantized.empty() && dequantized.shape() != weight.shape()) {
    return WrongShape("dequantized", "the weight's shape", dequantized);
  }
  return CheckSecondMoment(second_moment, weight.dim(1));
}

absl::Status CheckOutputs(const DeviceTensor& weight, const DeviceTensor& sample) {
  if (absl::Status status = CheckMatrix("weight", weight); !status.ok()) return status;
  return CheckSample(sample, weight.dim(1));
}

absl::Status CheckOutputError(const BlockTransform& transform, const DeviceTensor& decoded,
                              const DeviceTensor& sample, const DeviceTensor& outputs) {
  absl::Status status = CheckMatrix("decoded", decoded);
  if (status.ok()) status = CheckSample(sample, decoded.dim(1));
  if (status.ok()) status = CheckTransform(transform, decoded.dim(1));
  if (status.ok()) status = CheckShape("outputs", outputs, sample.dim(0), decoded.dim(0));
  return status;
}

absl::Status CheckSpread(const BlockTransform& transform, const DeviceTensor& weight,
                         const DeviceTensor& block_moment) {
  absl::Status status = CheckMatrix("weight", weight);
  if (status.ok()) status = CheckTransform(transform, weight.dim(1));
  if (status.ok()) status = CheckSecondMoment(block_moment, weight.dim(1));
  if (!status.ok()) return status;
  if (!block_moment.empty() && block_moment.shape().size() == 3 &&
      (transform.identity || block_moment.dim(1) == transform.block_size)) {
    return absl::OkStatus();
  }
  return WrongShape("second_moment", "blocks of the transform's size", block_moment);
}

absl::Status CheckLattice(const LatticeInputs& in) {
  if (absl::Status status = CheckMatrix("weight", in.weight); !status.ok()) return status;
  const int64_t rows = in.weight.dim(0);
  const int64_t cols = in.weight.dim(1);
  absl::Status status = CheckShape("second_moment", in.moment, cols, cols);
  if (status.ok()) status = CheckShape("factor", in.factor.lower, cols, cols);
  if (status.ok() && !in.moment_hat.empty()) {
    status = CheckShape("second_moment_hat", in.moment_hat, cols, cols);
  }
  if (status.ok() && !in.cross.empty()) status = CheckShape("cross_moment", in.cross, cols, cols);
  if (status.ok() && !in.residual.empty()) {
    status = CheckShape("residual_moment", in.residual, rows, cols);
  }
  return status;
}

absl::Status CheckCancellation(const MomentFactor& factor, const DeviceTensor& target,
                               double spacing) {
  if (absl::Status status = CheckMatrix("target", target); !status.ok()) return status;
  absl::Status status = CheckShape("factor", factor.lower, target.dim(0), target.dim(0));
  if (!status.ok()) return status;
  if (std::isnormal(spacing) && std::isfinite(1.0 / spacing) && spacing > 0.0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("spacing: expected a positive number; got ", spacing));
}

absl::Status CheckLatticeCodes(const LatticeProblem& problem, const DeviceTensor& codes,
                               const std::vector<double>& column_scale) {
  return CheckCodesOf(problem, codes, column_scale);
}

absl::Status CheckFitLatticeScales(const LatticeProblem& problem, const LatticeCodes& codes,
                                   const std::vector<double>& spacing) {
  absl::Status status = CheckCodesOf(problem, codes.codes, spacing);
  if (!status.ok()) return status;
  return CheckCount("gamma", codes.gamma.size(), codes.codes.dim(0));
}

absl::Status CheckCodeRows(const DeviceTensor& codes, int64_t first, int64_t rows) {
  if (absl::Status status = CheckCodes(codes); !status.ok()) return status;
  if (first >= 0 && rows > 0 && first + rows <= codes.dim(1) && codes.dim(0) > 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("codes: expected rows of ", codes.dim(1),
                                                 "; got [", first, ", ", first + rows, ")"));
}

absl::Status CheckEncodeCodes(const DeviceTensor& codes, int64_t first, int64_t rows,
                              const CodingModel& model) {
  if (absl::Status status = CheckCodeRows(codes, first, rows); !status.ok()) return status;
  return CheckCount("classes", model.class_of_column.size(), codes.dim(0));
}

absl::Status CheckDecodeLattice(const DeviceTensor& codes, const std::vector<double>& row_scale,
                                const std::vector<double>& column_scale,
                                absl::Span<const int64_t> columns, int64_t cols) {
  if (absl::Status status = CheckCodes(codes); !status.ok()) return status;
  absl::Status status = CheckCount("row scales", row_scale.size(), codes.dim(1));
  if (status.ok()) status = CheckCount("column scales", column_scale.size(), codes.dim(0));
  if (status.ok()) {
    const auto named = columns.empty() ? cols : static_cast<int64_t>(columns.size());
    status = CheckCount("columns", static_cast<size_t>(codes.dim(0)), named);
  }
  return status.ok() ? CheckIndices("columns", columns, cols) : status;
}

absl::Status CheckDriftError(const DeviceTensor& weight, const DeviceTensor& dequantized,
                             const DeviceTensor& moment, const DeviceTensor& moment_hat,
                             const DeviceTensor& cross) {
  if (absl::Status status = CheckMatrix("weight", weight); !status.ok()) return status;
  const int64_t cols = weight.dim(1);
  absl::Status status = CheckShape("dequantized", dequantized, weight.dim(0), cols);
  if (status.ok()) status = CheckShape("second_moment", moment, cols, cols);
  if (status.ok()) status = CheckShape("second_moment_hat", moment_hat, cols, cols);
  if (status.ok()) status = CheckShape("cross_moment", cross, cols, cols);
  return status;
}

}  // namespace quantd::compute::operands
