#include "compute/backend/cuda/solve_transforms.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/block_transform.h"
#include "compute/backend/cpu/transform_solver.h"
#include "compute/backend/cuda/block_product_kernels.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/matrix.h"
#include "compute/backend/cuda/matrix_kernels.h"
#include "compute/backend/cuda/moment_factor.h"

namespace quantd::compute {
namespace {

constexpr double kMaxDamping = 1.0;
constexpr int kLargestOwnGram = 64;  // of GramPartials; larger ones are a library's product

double Mean(absl::Span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// L of M + damping * mean diagonal I, and the damping that it took.
struct DampedFactor {
  DeviceBuffer<double> lower;
  double damping = kConditionalDamping;
};
absl::StatusOr<DampedFactor> FactorDamped(CudaStream& stream, const DeviceTensor& moment) {
  const int64_t cols = moment.dim(0);
  const absl::StatusOr<std::vector<double>> diagonal = CudaDiagonal(stream, moment);
  if (!diagonal.ok()) return diagonal.status();
  const double mean = Mean(*diagonal);
  const double unit = mean > 0.0 ? mean : 1.0;
  auto lower = DeviceBuffer<double>::Allocate(stream, cols * cols);
  if (!lower.ok()) return lower.status();
  for (double damping = kConditionalDamping; damping <= kMaxDamping; damping *= 10.0) {
    absl::Status status =
        ToStatus(LaunchLowerPlusDiagonal(stream.get(), cols, DeviceData<double>(moment),
                                         damping * unit, lower->data()),
                 "damping the second moment");
    if (!status.ok()) return status;
    const absl::StatusOr<bool> definite = CudaCholesky(stream, cols, lower->data());
    if (!definite.ok()) return definite.status();
    if (*definite) return DampedFactor{*std::move(lower), damping};
  }
  return NotPositive("the matrix");
}

// Data-aware transforms of a whole layer.
class LayerSolver {
 public:
  LayerSolver(CudaStream& stream, const TransformProblem& p)
      : stream_(stream), p_(p), rows_(p.weight.dim(0)), cols_(p.weight.dim(1)) {}

  absl::StatusOr<TransformSolution> Solve() {
    absl::StatusOr<TransformStack> stack = TransformStack::Allocate(stream_, p_.block_size, cols_);
    if (!stack.ok()) return stack.status();
    const auto size = static_cast<int>(p_.block_size);
    absl::StatusOr<BlockGrams> grams = AllocateGrams(stream_, rows_, size, stack->blocks);
    if (!grams.ok()) return grams.status();
    absl::Status status =
        SumGrams(stream_, DeviceData<double>(p_.weight), rows_, cols_, size, stack->blocks, *grams);
    if (!status.ok()) return status;
    problem_ = {.size = size,
                .hadamard = p_.kind == TransformKind::kWush,
                .conditional = p_.solver == Solver::kConditional,
                .damping = p_.damping,
                .gram = grams->partial.data(),
                .parts = grams->parts,
                .part_stride = grams->part_stride,
                .rows = static_cast<double>(rows_),
                .tx = stack->tx.data,
                .tw = stack->tw.data,
                .outcomes = stack->outcomes.data(),
                .scratch = stack->scratch.data()};
    status = problem_.conditional ? PrepareConditional(stack->blocks) : PrepareMarginal(size);
    if (!status.ok()) return status;
    if (status = stream_.CheckCancelled(); !status.ok()) return status;
    status =
        ToStatus(LaunchSolveBlocks(stream_.get(), problem_, stack->blocks), "solving transforms");
    if (!status.ok()) return status;
    absl::StatusOr<TransformSolution> solution =
        FinishTransforms(stream_, /*data_aware=*/true, p_.damping, {}, *std::move(stack));
    if (!solution.ok() || !problem_.conditional) return solution;
    solution->damping_max = factor_.damping;
    solution->damped_blocks = factor_.damping != kConditionalDamping ? cols_ / p_.block_size : 0;
    return solution;
  }

 private:
  absl::Status PrepareMarginal(int size) {
    auto diagonals = DeviceBuffer<double>::Allocate(stream_, cols_);
    if (!diagonals.ok()) return diagonals.status();
    const double* const moment = DeviceData<double>(p_.second_moment);
    absl::Status status =
        ToStatus(LaunchBlockDiagonal(stream_.get(), size, cols_, moment, diagonals->data()),
                 "reading the second moment");
    if (!status.ok()) return status;
    const absl::StatusOr<std::vector<double>> diagonal =
        CopyToHost(stream_, diagonals->data(), cols_);
    if (!diagonal.ok()) return diagonal.status();
    const absl::StatusOr<double> square = MeanSquare(stream_, p_.weight);
    if (!square.ok()) return square.status();
    problem_.weight_floor = BlockFloor(*square);
    problem_.moment_floor = BlockFloor(Mean(*diagonal));
    problem_.moment = moment;
    problem_.moment_ld = size;
    problem_.moment_stride = int64_t{size} * size;
    return absl::OkStatus();
  }

  // In round-to-nearest what the later blocks used of y = A[b,:] W^T is exactly their own columns'
  // part, so A_bb W_b^T remains and the blocks are independent of each other.
  absl::Status PrepareConditional(int64_t blocks) {
    absl::StatusOr<DampedFactor> factor = FactorDamped(stream_, p_.second_moment);
    if (!factor.ok()) return factor.status();
    factor_ = *std::move(factor);
    problem_.moment = factor_.lower.data();
    problem_.moment_ld = cols_;
    problem_.moment_stride = p_.block_size * (cols_ + 1);
    auto energies = DeviceBuffer<double>::Allocate(stream_, blocks);
    if (!energies.ok()) return energies.status();
    problem_.energies = energies->data();
    absl::Status status =
        ToStatus(LaunchSolveBlocks(stream_.get(), problem_, blocks), "energies of blocks");
    if (!status.ok()) return status;
    const absl::StatusOr<double> floor = SpectrumFloorOf(stream_, *energies);
    if (!floor.ok()) return floor.status();
    problem_.energies = nullptr;
    problem_.spectrum_floor = *floor;
    return absl::OkStatus();
  }

  CudaStream& stream_;
  const TransformProblem& p_;
  const int64_t rows_;
  const int64_t cols_;
  BlockProblem problem_;
  DampedFactor factor_;
};

absl::Status StatusOf(BlockState state, int64_t block) {
  switch (state) {
    case BlockState::kSolved:
      return absl::OkStatus();
    case BlockState::kNotPositive:
      return NotPositive(absl::StrCat("diagonal block ", block));
    case BlockState::kBeyondFloat32:
      return BeyondFloat32(block);
    case BlockState::kNotCoupled:
      return NotPositive(absl::StrCat("the transformed unit of block ", block));
  }
  return absl::InternalError("transform: unknown state");
}

}  // namespace

absl::StatusOr<TransformStack> TransformStack::Allocate(CudaStream& stream, int64_t size,
                                                        int64_t cols) {
  if (size > kLargestTransform) {
    return absl::InvalidArgumentError(absl::StrCat("transform: expected blocks of at most ",
                                                   kLargestTransform, " columns; got ", size));
  }
  const int64_t blocks = cols / size;
  TransformStack stack;
  stack.size = static_cast<int>(size);
  stack.blocks = blocks;
  auto tx = NewDeviceTensor<float>(stream, DType::kF32, {blocks, size, size});
  if (!tx.ok()) return tx.status();
  stack.tx = *std::move(tx);
  auto tw = NewDoubles(stream, {blocks, size, size});
  if (!tw.ok()) return tw.status();
  stack.tw = *std::move(tw);
  auto outcomes = DeviceBuffer<BlockOutcome>::Allocate(stream, blocks);
  if (!outcomes.ok()) return outcomes.status();
  stack.outcomes = *std::move(outcomes);
  absl::Status status = ToStatus(
      cudaMemsetAsync(stack.outcomes.data(), 0, blocks * sizeof(BlockOutcome), stream.get()),
      "clearing outcomes");
  if (!status.ok()) return status;
  const int64_t scratch_doubles = SolverScratch(stack.size);
  if (scratch_doubles == 0) return stack;
  auto scratch = DeviceBuffer<double>::Allocate(stream, scratch_doubles * blocks);
  if (!scratch.ok()) return scratch.status();
  stack.scratch = *std::move(scratch);
  return stack;
}

std::vector<float> DataFreeTransforms(TransformKind kind, int64_t size, int64_t cols,
                                      uint64_t seed) {
  std::vector<float> stack;
  stack.reserve(cols * size);
  Eigen::MatrixXd tx = HadamardMatrix(size);
  for (int64_t block = 0; block < cols / size; ++block) {
    if (kind == TransformKind::kRandom) tx = RandomRotation(size, seed, block);
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) stack.push_back(static_cast<float>(tx(i, j)));
    }
  }
  return stack;
}

absl::Status SetTransforms(CudaStream& stream, absl::Span<const float> tx, TransformStack& stack) {
  absl::Status status = CopyToDevice(stream, tx, stack.tx.data);
  if (!status.ok()) return status;
  return ToStatus(
      LaunchInvertTransforms(stream.get(), stack.size, stack.blocks, stack.tx.data, stack.tw.data,
                             stack.scratch.data(), stack.outcomes.data()),
      "inverting transforms");
}

absl::StatusOr<TransformSolution> FinishTransforms(CudaStream& stream, bool data_aware,
                                                   double asked_damping,
                                                   absl::Span<const int64_t> order,
                                                   TransformStack stack) {
  absl::Status status =
      ToStatus(LaunchConditions(stream.get(), stack.size, stack.blocks, stack.tx.data,
                                stack.scratch.data(), stack.outcomes.data()),
               "condition numbers");
  if (!status.ok()) return status;
  const absl::StatusOr<std::vector<BlockOutcome>> outcomes =
      CopyToHost(stream, stack.outcomes.data(), stack.blocks);
  if (!outcomes.ok()) return outcomes.status();
  TransformSolution solution;
  for (int64_t i = 0; i < stack.blocks; ++i) {
    const int64_t block = order.empty() ? i : order[i];
    if (status = StatusOf((*outcomes)[block].state, block); !status.ok()) return status;
  }
  for (const BlockOutcome& outcome : *outcomes) {
    if (data_aware) solution.trace.push_back(outcome.trace);
    solution.condition_max = std::max(solution.condition_max, outcome.condition);
    solution.damping_max = std::max(solution.damping_max, outcome.damping);
    solution.damped_blocks += outcome.damping > asked_damping ? 1 : 0;
  }
  solution.transform = {.block_size = stack.size,
                        .tx = std::move(stack.tx.tensor),
                        .tw = std::move(stack.tw.tensor),
                        .identity = false};
  return solution;
}

absl::StatusOr<BlockGrams> AllocateGrams(CudaStream& stream, int64_t rows, int size,
                                         int64_t blocks) {
  BlockGrams grams;
  grams.parts = size > kLargestOwnGram ? 1 : SliceGram(rows, blocks).slices;
  grams.part_stride = blocks * size * size;
  auto partial = DeviceBuffer<double>::Allocate(stream, grams.parts * grams.part_stride);
  if (!partial.ok()) return partial.status();
  grams.partial = *std::move(partial);
  return grams;
}

absl::Status SumGrams(CudaStream& stream, const double* weight, int64_t rows, int64_t ld, int size,
                      int64_t blocks, const BlockGrams& grams) {
  if (size <= kLargestOwnGram) {
    return ToStatus(LaunchGramPartials(stream.get(), weight, rows, ld, size, blocks,
                                       SliceGram(rows, blocks), grams.partial.data()),
                    "summing products of weights");
  }
  // Columns first, W_b is B x R.
  const double one = 1.0;
  const double zero = 0.0;
  return ToStatus(
      cublasDgemmStridedBatched(stream.blas(), CUBLAS_OP_N, CUBLAS_OP_T, size, size,
                                static_cast<int>(rows), &one, weight, static_cast<int>(ld), size,
                                weight, static_cast<int>(ld), size, &zero, grams.partial.data(),
                                size, int64_t{size} * size, static_cast<int>(blocks)),
      "products of weights");
}

absl::StatusOr<double> MeanSquare(CudaStream& stream, const DeviceTensor& matrix) {
  const absl::StatusOr<std::vector<double>> energies = CudaColumnEnergies(stream, matrix);
  if (!energies.ok()) return energies.status();
  return Mean(*energies);
}

absl::StatusOr<double> SpectrumFloorOf(CudaStream& stream, const DeviceBuffer<double>& energies) {
  absl::StatusOr<std::vector<double>> values = CopyToHost(stream, energies.data(), energies.size());
  if (!values.ok()) return values.status();
  for (double& value : *values) value = std::max(value, 0.0);
  return SpectrumFloor(Mean(*values));
}

absl::StatusOr<TransformSolution> CudaSolveTransforms(CudaStream& stream,
                                                      const TransformProblem& p) {
  if (p.kind == TransformKind::kIdentity) {
    TransformSolution solution;
    solution.transform.block_size = p.block_size;
    solution.transform.identity = true;
    return solution;
  }
  if (p.kind == TransformKind::kWus || p.kind == TransformKind::kWush) {
    return LayerSolver(stream, p).Solve();
  }
  const int64_t cols = p.weight.dim(1);
  absl::StatusOr<TransformStack> stack = TransformStack::Allocate(stream, p.block_size, cols);
  if (!stack.ok()) return stack.status();
  absl::Status status =
      SetTransforms(stream, DataFreeTransforms(p.kind, p.block_size, cols, p.seed), *stack);
  if (!status.ok()) return status;
  return FinishTransforms(stream, /*data_aware=*/false, 0.0, {}, *std::move(stack));
}

}  // namespace quantd::compute
