#include "compute/backend/cpu/gptq_transforms.h"

#include <algorithm>
#include <utility>

#include "compute/backend/cpu/host_memory.h"
#include "compute/backend/cpu/transform_solver.h"

namespace quantd::compute {
namespace {

using RowMajorMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

using RowMajorFloats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

double SumOfSquares(absl::Span<const double> values) {
  return Eigen::Map<const Eigen::VectorXd>(values.data(), static_cast<int64_t>(values.size()))
      .squaredNorm();
}

template <typename T>
DeviceTensor Upload(Stream& stream, DType dtype, int64_t block_size, const std::vector<T>& stack) {
  const auto blocks = static_cast<int64_t>(stack.size()) / (block_size * block_size);
  return Adopt(stream, *Tensor::FromBytes(
                           dtype, {blocks, block_size, block_size},
                           absl::MakeConstSpan(reinterpret_cast<const std::byte*>(stack.data()),
                                               stack.size() * sizeof(T))));
}

}  // namespace

GptqTransforms::GptqTransforms(const GptqProblem& problem, int64_t cols)
    : identity_(problem.transform == TransformKind::kIdentity),
      conditional_(problem.solver == Solver::kConditional),
      block_size_(problem.block_size),
      cols_(cols),
      moment_(Doubles(problem.second_moment)),
      solver_(problem.transform, identity_ ? 1 : problem.block_size, problem.transform_damping) {}

absl::StatusOr<GptqTransforms> GptqTransforms::Create(WorkerPool& pool, const Stream& stream,
                                                      const GptqProblem& problem) {
  const int64_t cols = problem.weight.dim(1);
  GptqTransforms result(problem, cols);
  if (problem.given_transform != nullptr) {
    absl::Status status = result.Take(problem.given_transform->as<float>());
    if (!status.ok()) return status;
    return result;
  }
  if (result.identity_) return result;
  if (IsDataAware(problem.transform)) {
    result.data_aware_ = true;
    result.Allocate();
    double trace = 0.0;
    for (int64_t c = 0; c < cols; ++c) trace += result.moment_[c * cols + c];
    const absl::Span<const double> weight = HostTensor(problem.weight).as<double>();
    result.solver_.SetFloors(SumOfSquares(weight) / static_cast<double>(weight.size()),
                             trace / static_cast<double>(cols));
    return result;
  }
  absl::StatusOr<HostTransform> solved =
      SolveBlockTransforms(pool, {.kind = problem.transform,
                                  .block_size = result.block_size_,
                                  .seed = problem.seed,
                                  .rows = problem.weight.dim(0),
                                  .cols = cols,
                                  .stream = &stream});
  if (!solved.ok()) return solved.status();
  result.tx_ = std::move(solved->tx);
  result.tw_ = std::move(solved->tw);
  result.widened_.assign(result.tx_.begin(), result.tx_.end());
  result.condition_max_ = solved->condition_max;
  return result;
}

void GptqTransforms::Allocate() {
  const int64_t elements = cols_ * block_size_;
  tx_.resize(elements);
  tw_.resize(elements);
  widened_.resize(elements);
  outcomes_.resize(cols_ / block_size_);
}

absl::Status GptqTransforms::Take(absl::Span<const float> stack) {
  identity_ = false;
  Allocate();
  for (int64_t block = 0; block < cols_ / block_size_; ++block) {
    const Eigen::MatrixXf tx = Eigen::Map<const RowMajorFloats>(
        stack.data() + block * block_size_ * block_size_, block_size_, block_size_);
    absl::Status status = Store(block, {.tx = tx.cast<double>()});
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

void GptqTransforms::SetSpectrumFloor(double mean_square_output) {
  solver_.SetSpectrumFloor(mean_square_output);
}

absl::Status GptqTransforms::SolveMarginal(int64_t block, const Eigen::MatrixXd& mw) {
  const double* corner = moment_ + block * block_size_ * (cols_ + 1);
  const Eigen::MatrixXd mx = Eigen::Map<const RowMajorMatrix, 0, Eigen::OuterStride<>>(
      corner, block_size_, block_size_, Eigen::OuterStride<>(cols_));
  const absl::StatusOr<BlockSolution> solution = solver_.SolveMarginal(block, mw, mx);
  return solution.ok() ? Store(block, *solution) : solution.status();
}

absl::Status GptqTransforms::SolveConditional(int64_t block, const Eigen::MatrixXd& basis,
                                              Eigen::MatrixXd y_transposed) {
  return Store(block, solver_.SolveConditional(basis, std::move(y_transposed)));
}

absl::Status GptqTransforms::Store(int64_t block, const BlockSolution& solution) {
  const int64_t size = block_size_ * block_size_;
  float* tx = tx_.data() + block * size;
  const absl::StatusOr<double> condition =
      StoreBlock(solution.tx, block, tx, tw_.data() + block * size);
  if (!condition.ok()) return condition.status();
  std::copy_n(tx, size, widened_.data() + block * size);
  outcomes_[block] = {.trace = solution.trace,
                      .condition = *condition,
                      .damping = solution.damping,
                      .damped = solution.damped};
  return absl::OkStatus();
}

TransformSolution GptqTransforms::Finish(Stream& stream) && {
  TransformSolution solution;
  solution.transform.block_size = block_size_;
  solution.transform.identity = identity_;
  if (identity_) return solution;
  solution.transform.tx = Upload(stream, DType::kF32, block_size_, tx_);
  solution.transform.tw = Upload(stream, DType::kF64, block_size_, tw_);
  solution.condition_max = condition_max_;
  for (const BlockOutcome& outcome : outcomes_) {
    if (data_aware_) solution.trace.push_back(outcome.trace);
    solution.condition_max = std::max(solution.condition_max, outcome.condition);
    solution.damping_max = std::max(solution.damping_max, outcome.damping);
    solution.damped_blocks += outcome.damped ? 1 : 0;
  }
  return solution;
}

}  // namespace quantd::compute
