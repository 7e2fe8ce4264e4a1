#include "compute/backend/cuda/gptq_solver.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/block_transform.h"
#include "compute/backend/cuda/block_product_kernels.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/gptq_layer.h"
#include "compute/backend/cuda/gptq_moment.h"
#include "compute/backend/cuda/matrix.h"
#include "compute/backend/cuda/matrix_kernels.h"
#include "compute/backend/cuda/moment_factor.h"
#include "compute/backend/cuda/rounding_kernels.h"
#include "compute/backend/cuda/solve_transforms.h"
#include "compute/backend/gptq_global.h"

namespace quantd::compute {
namespace {

constexpr int64_t kPanel = 256;  // positions whose errors reach all earlier ones at once
constexpr double kFirstJitter = 1e-12;
constexpr double kLastJitter = 1e-2;

bool IsDataAware(const GptqProblem& p) {
  return p.given_transform == nullptr &&
         (p.transform == TransformKind::kWus || p.transform == TransformKind::kWush);
}

// One layer on its way: numbers as in docs/numerics.md, section 8.
class GptqRun {
 public:
  GptqRun(CudaStream& stream, const NumberFormat& format, const GptqProblem& problem)
      : stream_(stream),
        format_(format),
        spec_(format.spec()),
        p_(problem),
        rows_(problem.weight.dim(0)),
        cols_(problem.weight.dim(1)),
        identity_(problem.transform == TransformKind::kIdentity &&
                  problem.given_transform == nullptr),
        data_aware_(IsDataAware(problem)),
        conditional_(problem.solver == Solver::kConditional),
        negative_zeros_(problem.order == BlockOrder::kDescending && format.element_bits() == 4 &&
                        format.element_mantissa_bits().has_value()) {}

  absl::StatusOr<GptqSolution> Run() {
    if (absl::Status status = Prepare(); !status.ok()) return status;
    if (absl::Status status = RoundUnits(); !status.ok()) return status;
    return Finish();
  }

 private:
  absl::Status Prepare() {
    const absl::StatusOr<std::vector<double>> diagonal = CudaDiagonal(stream_, p_.second_moment);
    if (!diagonal.ok()) return diagonal.status();
    plan_ = PlanGptq(
        {.cols = cols_,
         .scale_cols = format_.grid().cols,
         .transform_block = identity_ ? 0 : p_.block_size,
         .descending = p_.order == BlockOrder::kDescending,
         .diagonal = p_.act_order ? absl::MakeConstSpan(*diagonal) : absl::Span<const double>()});
    absl::StatusOr<DevicePlan> device_plan = DevicePlan::Upload(stream_, plan_);
    if (!device_plan.ok()) return device_plan.status();
    device_plan_ = *std::move(device_plan);
    if (absl::Status status = PrepareTransforms(*diagonal); !status.ok()) return status;
    absl::StatusOr<CudaGptqMoment> moment = CudaGptqMoment::Factor(
        stream_, p_.second_moment, *diagonal, device_plan_.arranged.data(), p_.damping);
    if (!moment.ok()) return moment.status();
    moment_ = *std::move(moment);
    if (absl::Status status = PrepareTarget(); !status.ok()) return status;
    if (absl::Status status = moment_.Split(stream_, plan_); !status.ok()) return status;
    if (absl::Status status = PrepareScales(); !status.ok()) return status;
    return PrepareUnits();
  }

  // What does not depend on updated weights: whole transforms, or what their solver starts from.
  absl::Status PrepareTransforms(const std::vector<double>& diagonal) {
    if (identity_) return absl::OkStatus();
    absl::StatusOr<TransformStack> stack = TransformStack::Allocate(stream_, p_.block_size, cols_);
    if (!stack.ok()) return stack.status();
    stack_ = *std::move(stack);
    if (p_.given_transform != nullptr) {
      return SetTransforms(stream_, p_.given_transform->as<float>(), stack_);
    }
    if (!data_aware_) {
      return SetTransforms(stream_, DataFreeTransforms(p_.transform, p_.block_size, cols_, p_.seed),
                           stack_);
    }
    const absl::StatusOr<double> square = MeanSquare(stream_, p_.weight);
    if (!square.ok()) return square.status();
    solver_ = {};
    solver_.size = stack_.size;
    solver_.hadamard = p_.transform == TransformKind::kWush;
    solver_.conditional = conditional_;
    solver_.damping = p_.transform_damping;
    solver_.weight_floor = BlockFloor(*square);
    solver_.moment_floor = BlockFloor(std::accumulate(diagonal.begin(), diagonal.end(), 0.0) /
                                      static_cast<double>(cols_));
    solver_.rows = static_cast<double>(rows_);
    solver_.scratch = stack_.scratch.data();
    return absl::OkStatus();
  }

  // With drift the codes approximate W* = W + W (E[x xhat^T] - E[xhat xhat^T]) M^-1.
  absl::Status PrepareTarget() {
    absl::StatusOr<RoundedLayer> layer =
        RoundedLayer::Allocate(stream_, spec_, rows_, cols_, identity_);
    if (!layer.ok()) return layer.status();
    layer_ = *std::move(layer);
    layer_.target = DeviceData<double>(p_.weight);
    if (!p_.cross_moment.empty()) {
      if (absl::Status status = ShiftTarget(); !status.ok()) return status;
    }
    return ToStatus(LaunchArrangeColumns(stream_.get(), rows_, cols_, layer_.target,
                                         device_plan_.arranged.data(), layer_.updated.data()),
                    "arranging the weight");
  }

  absl::Status ShiftTarget() {
    auto shifted = DeviceBuffer<double>::Allocate(stream_, rows_ * cols_);
    if (!shifted.ok()) return shifted.status();
    auto drift = DeviceBuffer<double>::Allocate(stream_, cols_ * cols_);
    if (!drift.ok()) return drift.status();
    auto product = DeviceBuffer<double>::Allocate(stream_, rows_ * cols_);
    if (!product.ok()) return product.status();
    double* const arranged = layer_.updated.data();
    absl::Status status =
        ToStatus(LaunchSubtract(stream_.get(), cols_ * cols_, DeviceData<double>(p_.cross_moment),
                                DeviceData<double>(p_.second_moment), drift->data()),
                 "drift");
    if (status.ok()) {
      status = MultiplyRows(stream_, rows_, cols_, cols_, layer_.target, cols_, drift->data(),
                            cols_, ProductInto::kReplace, product->data(), cols_);
    }
    if (status.ok()) {
      status = ToStatus(LaunchArrangeColumns(stream_.get(), rows_, cols_, product->data(),
                                             device_plan_.arranged.data(), arranged),
                        "drift");
    }
    if (status.ok()) status = moment_.Solve(stream_, rows_, arranged);
    if (status.ok()) {
      status = ToStatus(LaunchAddArranged(stream_.get(), rows_, cols_, layer_.target,
                                          device_plan_.arranged.data(), arranged, shifted->data()),
                        "drift");
    }
    shifted_ = *std::move(shifted);
    layer_.target = shifted_.data();
    return status;
  }

  // What scales need to know of the whole layer: the largest magnitude before any feedback. Data-
  // aware transforms are solved for it as RTN solves them, and again later, from updated weights.
  absl::Status PrepareScales() {
    const bool follows_amax = GptqGlobal::FollowsAmax(format_);
    if (data_aware_) {
      if (absl::Status status = PresolveTransforms(follows_amax); !status.ok()) return status;
    }
    double amax = 0.0;
    if (follows_amax) {
      absl::StatusOr<double> largest = LargestTransformed();
      if (!largest.ok()) return largest.status();
      amax = *largest;
    }
    global_.emplace(format_, amax);
    return absl::OkStatus();
  }

  absl::StatusOr<double> LargestTransformed() {
    auto amax = DeviceBuffer<double>::Allocate(stream_, 1);
    if (!amax.ok()) return amax.status();
    absl::Status status =
        ToStatus(identity_ ? LaunchAmax(stream_.get(), rows_ * cols_, layer_.target, amax->data())
                           : LaunchTransformedAmax(stream_.get(), stack_.size, stack_.tw.data,
                                                   rows_, cols_, layer_.target, amax->data()),
                 "largest magnitude");
    if (!status.ok()) return status;
    const absl::StatusOr<std::vector<double>> value = CopyToHost(stream_, amax->data(), 1);
    if (!value.ok()) return value.status();
    return value->front();
  }

  // Of the weights as they are. The marginal solver's singular vectors are what it starts from when
  // weights have been updated.
  absl::Status PresolveTransforms(bool needed) {
    absl::StatusOr<BlockGrams> grams = AllocateGrams(stream_, rows_, stack_.size, stack_.blocks);
    if (!grams.ok()) return grams.status();
    absl::Status status = SumGrams(stream_, conditional_ ? layer_.updated.data() : layer_.target,
                                   rows_, cols_, stack_.size, stack_.blocks, *grams);
    if (!status.ok()) return status;
    if (conditional_) return PresolveConditional(*grams, needed);
    auto vectors = DeviceBuffer<double>::Allocate(stream_, cols_ * stack_.size);
    if (!vectors.ok()) return vectors.status();
    vectors_ = *std::move(vectors);
    BlockProblem problem = MarginalProblem(0);
    problem.gram = grams->partial.data();
    problem.parts = grams->parts;
    problem.part_stride = grams->part_stride;
    problem.vectors = vectors_.data();
    return ToStatus(LaunchSolveBlocks(stream_.get(), problem, stack_.blocks), "solving transforms");
  }

  absl::Status PresolveConditional(const BlockGrams& grams, bool needed) {
    auto energies = DeviceBuffer<double>::Allocate(stream_, stack_.blocks);
    if (!energies.ok()) return energies.status();
    const auto for_each_unit = [&](double* energies_to) {
      for (const GptqUnit& unit : plan_.units) {
        BlockProblem problem = ConditionalProblem(unit);
        problem.gram = grams.partial.data() + unit.begin * stack_.size;
        problem.parts = grams.parts;
        problem.part_stride = grams.part_stride;
        if (energies_to != nullptr) problem.energies = energies_to + unit.first / stack_.size;
        absl::Status status =
            ToStatus(LaunchSolveBlocks(stream_.get(), problem, unit.width / stack_.size),
                     "solving transforms");
        if (!status.ok()) return status;
      }
      return absl::OkStatus();
    };
    if (absl::Status status = for_each_unit(energies->data()); !status.ok()) return status;
    const absl::StatusOr<double> floor = SpectrumFloorOf(stream_, *energies);
    if (!floor.ok()) return floor.status();
    solver_.spectrum_floor = *floor;
    return needed ? for_each_unit(nullptr) : absl::OkStatus();
  }

  // Of the blocks from column `first` on, in the layer's order.
  BlockProblem MarginalProblem(int64_t first) const {
    BlockProblem problem = solver_;
    problem.moment = DeviceData<double>(p_.second_moment) + first * (cols_ + 1);
    problem.moment_ld = cols_;
    problem.moment_stride = stack_.size * (cols_ + 1);
    SetResults(first, problem);
    return problem;
  }

  // Of a unit's blocks: A_bb^T A_bb is what the unit's factor has there.
  BlockProblem ConditionalProblem(const GptqUnit& unit) const {
    BlockProblem problem = solver_;
    problem.moment = moment_.values() + unit.begin * (cols_ + 1);
    problem.moment_ld = cols_;
    problem.moment_stride = stack_.size * (cols_ + 1);
    problem.reversed = IsReversed(unit);
    SetResults(unit.first, problem);
    return problem;
  }

  void SetResults(int64_t first, BlockProblem& problem) const {
    problem.tx = stack_.tx.data + first * stack_.size;
    problem.tw = stack_.tw.data + first * stack_.size;
    problem.outcomes = stack_.outcomes.data() + first / stack_.size;
  }

  // Inside a unit with transforms the order is the layer's or its reverse.
  static bool IsReversed(const GptqUnit& unit) { return unit.inner.front() != 0; }

  absl::Status PrepareUnits() {
    for (const GptqUnit& unit : plan_.units) widest_ = std::max(widest_, unit.width);
    const bool uniform = cols_ % widest_ == 0;
    couples_in_kernel_ = uniform && widest_ <= kLargestCoupled;
    fused_ = uniform && CanRoundUnitRows(spec_, widest_);
    divisor_ = {.global = global_->global().value_or(1.0f),
                .small_global = global_->small_global().value_or(1.0f),
                .outgrown = global_->outgrown(),
                .small = global_->small(),
                .follows_amax = global_->follows_amax()};
    const auto units = static_cast<int64_t>(plan_.units.size());
    auto states = DeviceBuffer<BlockState>::Allocate(stream_, units);
    if (!states.ok()) return states.status();
    states_ = *std::move(states);
    absl::Status status = ToStatus(
        cudaMemsetAsync(states_.data(), 0, units * sizeof(BlockState), stream_.get()), "states");
    if (!status.ok()) return status;
    const int64_t coupled = couples_in_kernel_ && !data_aware_ ? units : 1;
    auto coupling = DeviceBuffer<double>::Allocate(stream_, coupled * widest_ * widest_);
    if (!coupling.ok()) return coupling.status();
    coupling_ = *std::move(coupling);
    auto errors = DeviceBuffer<double>::Allocate(stream_, rows_ * std::max(kPanel, widest_));
    if (!errors.ok()) return errors.status();
    errors_ = *std::move(errors);
    if (data_aware_) {
      absl::StatusOr<BlockGrams> grams =
          AllocateGrams(stream_, rows_, stack_.size, widest_ / stack_.size);
      if (!grams.ok()) return grams.status();
      grams_ = *std::move(grams);
    }
    if (!fused_) {
      absl::StatusOr<WideUnitRounder> wide =
          WideUnitRounder::Create(stream_, spec_, divisor_, negative_zeros_, rows_, widest_);
      if (!wide.ok()) return wide.status();
      wide_ = *std::move(wide);
    }
    return couples_in_kernel_ && !data_aware_ ? CoupleInKernel(0, units) : absl::OkStatus();
  }

  absl::Status RoundUnits() {
    for (auto last = static_cast<int64_t>(plan_.units.size()); last > 0;) {
      int64_t first = last - 1;
      const int64_t end = plan_.units[first].begin + plan_.units[first].width;
      while (first > 0 && end - plan_.units[first - 1].begin <= kPanel) --first;
      const GptqPanel panel = {
          .begin = plan_.units[first].begin, .end = end, .errors = errors_.data()};
      for (int64_t g = last - 1; g >= first; --g) {
        absl::Status status = RoundUnit(g, panel);
        if (!status.ok()) return status;
      }
      if (absl::Status status = stream_.CheckCancelled(); !status.ok()) return status;
      if (panel.begin > 0) {
        const int64_t width = panel.end - panel.begin;
        absl::Status status = MultiplyRows(stream_, rows_, panel.begin, width, panel.errors, width,
                                           moment_.values() + panel.begin * cols_, cols_,
                                           ProductInto::kAdd, layer_.updated.data(), cols_);
        if (!status.ok()) return status;
      }
      last = first;
    }
    return absl::OkStatus();
  }

  absl::Status RoundUnit(int64_t g, const GptqPanel& panel) {
    const GptqUnit& unit = plan_.units[g];
    absl::Status status = data_aware_ ? SolveUnit(unit) : absl::OkStatus();
    const double* coupling = coupling_.data();
    if (couples_in_kernel_ && !data_aware_) {
      coupling += g * widest_ * widest_;
    } else if (status.ok() && !CouplesWithTransform(unit)) {
      status = couples_in_kernel_ ? CoupleInKernel(g, 1) : CoupleWide(unit);
    }
    if (!status.ok()) return status;
    UnitOperands operands = {.unit = &unit,
                             .inner = device_plan_.inner.data() + unit.begin,
                             .coupling = coupling,
                             .factor = moment_.values()};
    if (!identity_) {
      operands.block_size = stack_.size;
      operands.tw = stack_.tw.data + unit.first * stack_.size;
      operands.tx = stack_.tx.data + unit.first * stack_.size;
    }
    return fused_ ? RoundFused(operands, panel) : wide_.Round(stream_, operands, panel, layer_);
  }

  absl::Status RoundFused(const UnitOperands& operands, const GptqPanel& panel) {
    GptqUnitRows unit;
    unit.rows = rows_;
    unit.cols = cols_;
    unit.width = static_cast<int>(operands.unit->width);
    unit.begin = operands.unit->begin;
    unit.first = operands.unit->first;
    unit.inner = operands.inner;
    unit.panel_begin = panel.begin;
    unit.panel_width = panel.end - panel.begin;
    unit.block_size = operands.block_size;
    unit.tw = operands.tw;
    unit.tx = operands.tx;
    unit.coupling = operands.coupling;
    unit.factor = operands.factor;
    unit.format = spec_;
    unit.divisor = divisor_;
    unit.negative_zeros = negative_zeros_;
    unit.target = layer_.target;
    unit.updated = layer_.updated.data();
    unit.errors = panel.errors;
    unit.codes = layer_.codes.data();
    unit.scales = layer_.scales.data();
    unit.decoded = layer_.decoded.data;
    unit.dequantized = layer_.dequantized.data;
    return ToStatus(LaunchGptqUnitRows(stream_.get(), unit), "rounding a unit");
  }

  // A unit of one block gets its coupling with its transform.
  bool CouplesWithTransform(const GptqUnit& unit) const {
    return data_aware_ && couples_in_kernel_ && unit.width == stack_.size;
  }

  absl::Status SolveUnit(const GptqUnit& unit) {
    const int64_t blocks = unit.width / stack_.size;
    absl::Status status = SumGrams(stream_, layer_.updated.data() + unit.begin, rows_, cols_,
                                   stack_.size, blocks, grams_);
    if (!status.ok()) return status;
    BlockProblem problem = conditional_ ? ConditionalProblem(unit) : MarginalProblem(unit.first);
    problem.reversed = IsReversed(unit);
    problem.gram = grams_.partial.data();
    problem.parts = grams_.parts;
    problem.part_stride = grams_.part_stride;
    if (!conditional_) problem.start = vectors_.data() + unit.first * stack_.size;
    if (CouplesWithTransform(unit)) {
      problem.unit_factor = moment_.values() + unit.begin * (cols_ + 1);
      problem.unit_factor_ld = cols_;
      problem.coupling = coupling_.data();
    }
    return ToStatus(LaunchSolveBlocks(stream_.get(), problem, blocks), "solving a transform");
  }

  absl::Status CoupleInKernel(int64_t first_unit, int64_t units) {
    UnitProblem problem;
    problem.width = static_cast<int>(widest_);
    problem.size = identity_ ? 0 : stack_.size;
    problem.tx = stack_.tx.data;
    problem.factor = moment_.values();
    problem.ld = cols_;
    problem.begins = device_plan_.begins.data() + first_unit;
    problem.firsts = device_plan_.firsts.data() + first_unit;
    problem.reversed = IsReversed(plan_.units[first_unit]);
    problem.coupling = coupling_.data();
    problem.states = states_.data() + first_unit;
    return ToStatus(LaunchCoupleUnits(stream_.get(), problem, units), "coupling units");
  }

  // The Cholesky factor of T D T^T, arranged, with D = L L^T, its columns divided by their
  // diagonal.
  absl::Status CoupleWide(const GptqUnit& unit) {
    const int64_t n = unit.width;
    const double* const lower = moment_.values() + unit.begin * (cols_ + 1);
    if (identity_) {
      return ToStatus(LaunchNormalizeColumns(stream_.get(), n, lower, cols_, coupling_.data()),
                      "coupling");
    }
    auto half = DeviceBuffer<double>::Allocate(stream_, n * n);
    if (!half.ok()) return half.status();
    auto moment = NewDoubles(stream_, {n, n});
    if (!moment.ok()) return moment.status();
    absl::Status status =
        ToStatus(LaunchTransformFactor(stream_.get(), n, stack_.size,
                                       stack_.tx.data + unit.first * stack_.size, lower, cols_,
                                       IsReversed(unit), half->data()),
                 "transforming the factor");
    if (!status.ok()) return status;
    const double one = 1.0;
    const double zero = 0.0;
    const auto size = static_cast<int>(n);
    status =
        ToStatus(cublasDgemm(stream_.blas(), CUBLAS_OP_T, CUBLAS_OP_N, size, size, size, &one,
                             half->data(), size, half->data(), size, &zero, moment->data, size),
                 "transforming the factor");
    if (!status.ok()) return status;
    const absl::StatusOr<std::vector<double>> diagonal = CudaDiagonal(stream_, moment->tensor);
    if (!diagonal.ok()) return diagonal.status();
    const double mean =
        std::accumulate(diagonal->begin(), diagonal->end(), 0.0) / static_cast<double>(n);
    // Positive definite but for rounding.
    for (double jitter = 0.0; jitter <= kLastJitter;
         jitter = std::max(10.0 * jitter, kFirstJitter)) {
      status = ToStatus(
          LaunchLowerPlusDiagonal(stream_.get(), n, moment->data, jitter * mean, half->data()),
          "coupling");
      if (!status.ok()) return status;
      const absl::StatusOr<bool> definite = CudaCholesky(stream_, n, half->data());
      if (!definite.ok()) return definite.status();
      if (*definite) {
        return ToStatus(LaunchNormalizeColumns(stream_.get(), n, half->data(), n, coupling_.data()),
                        "coupling");
      }
    }
    return NotPositive(absl::StrCat("the transformed block at column ", unit.first));
  }

  absl::StatusOr<GptqSolution> Finish() {
    if (absl::Status status = CheckCoupled(); !status.ok()) return status;
    GptqSolution solution;
    solution.damping = moment_.damping();
    solution.retries = moment_.retries();
    if (identity_) {
      solution.transform.transform.block_size = p_.block_size;
      solution.transform.transform.identity = true;
    } else {
      absl::StatusOr<TransformSolution> finished = FinishTransforms(
          stream_, data_aware_, p_.transform_damping, OrderOfBlocks(), std::move(stack_));
      if (!finished.ok()) return finished.status();
      solution.transform = *std::move(finished);
    }
    const absl::StatusOr<std::optional<float>> global = FinalGlobal();
    if (!global.ok()) return global.status();
    absl::StatusOr<PackedLayer> packed =
        PackLayer(stream_, format_, global->value_or(1.0f), layer_);
    if (!packed.ok()) return packed.status();
    solution.quantized = {.codes = std::move(packed->codes),
                          .scales = std::move(packed->scales),
                          .global_scale = *global,
                          .dequantized = std::move(layer_.dequantized.tensor),
                          .decoded = std::move(layer_.decoded.tensor)};
    return solution;
  }

  absl::Status CheckCoupled() {
    if (identity_) return absl::OkStatus();
    const absl::StatusOr<std::vector<BlockState>> states =
        CopyToHost(stream_, states_.data(), states_.size());
    if (!states.ok()) return states.status();
    for (int64_t g = states_.size() - 1; g >= 0; --g) {
      if ((*states)[g] == BlockState::kSolved) continue;
      return NotPositive(absl::StrCat("the transformed block at column ", plan_.units[g].first));
    }
    return absl::OkStatus();
  }

  // As they were solved.
  std::vector<int64_t> OrderOfBlocks() const {
    std::vector<int64_t> order;
    if (!data_aware_) return order;
    for (auto unit = plan_.units.rbegin(); unit != plan_.units.rend(); ++unit) {
      for (int64_t c = unit->first; c < unit->first + unit->width; c += p_.block_size) {
        order.push_back(c / p_.block_size);
      }
    }
    return order;
  }

  absl::StatusOr<std::optional<float>> FinalGlobal() {
    if (!global_->follows_amax()) return global_->global();
    auto largest = DeviceBuffer<double>::Allocate(stream_, 1);
    if (!largest.ok()) return largest.status();
    absl::Status status = ToStatus(
        LaunchAmax(stream_.get(), layer_.scales.size(), layer_.scales.data(), largest->data()),
        "largest scale");
    if (!status.ok()) return status;
    const absl::StatusOr<std::vector<double>> value = CopyToHost(stream_, largest->data(), 1);
    if (!value.ok()) return value.status();
    return global_->Final(value->front());
  }

  CudaStream& stream_;
  const NumberFormat& format_;
  const FormatSpec spec_;
  const GptqProblem& p_;
  const int64_t rows_;
  const int64_t cols_;
  const bool identity_;
  const bool data_aware_;
  const bool conditional_;
  const bool negative_zeros_;
  GptqPlan plan_;
  DevicePlan device_plan_;
  TransformStack stack_;
  BlockProblem solver_;           // what all of the layer's blocks have in common
  DeviceBuffer<double> vectors_;  // of the marginal solver, for the weights as they were
  CudaGptqMoment moment_;
  RoundedLayer layer_;
  DeviceBuffer<double> shifted_;  // the target where it is not the weight
  std::optional<GptqGlobal> global_;
  ScaleDivisor divisor_;
  int64_t widest_ = 0;               // of the units
  bool fused_ = false;               // units are rounded in one launch each
  bool couples_in_kernel_ = false;   // units are narrow and of one width
  DeviceBuffer<double> coupling_;    // of one unit, or of all where no transform waits for weights
  DeviceBuffer<BlockState> states_;  // of the units' couplings
  DeviceBuffer<double> errors_;      // R x a panel
  BlockGrams grams_;                 // of one unit
  WideUnitRounder wide_;
};

}  // namespace

absl::StatusOr<GptqSolution> CudaSolveGptq(CudaStream& stream, const NumberFormat& format,
                                           const GptqProblem& problem) {
  return GptqRun(stream, format, problem).Run();
}

}  // namespace quantd::compute
