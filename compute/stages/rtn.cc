#include "compute/stages/rtn.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace quantd::compute {
namespace {

// Of the sample, where the choice is not also the result.
constexpr int64_t kRowsToPickBy = 128;

// One layer rounded to nearest with one damping; its codes are still on the device.
struct Attempt {
  double damping = 0.0;
  TransformSolution transform;
  QuantizedWeight quantized;
};

absl::StatusOr<Attempt> SolveWith(Backend& backend, Stream& stream, const LayerProblem& problem,
                                  const NumberFormat& format, double damping,
                                  absl::FunctionRef<void(absl::string_view)> stage) {
  const Recipe& recipe = problem.recipe;
  stage("transform");
  absl::StatusOr<TransformSolution> transform = backend.SolveTransforms(
      stream, {.kind = recipe.transform,
               .solver = recipe.solver,
               .block_size = recipe.transform_block_size,
               .damping = damping,
               .seed = recipe.seed,
               .weight = problem.weight,
               .second_moment = recipe.solver == Solver::kConditional ? problem.full_moment
                                                                      : problem.block_moment});
  if (!transform.ok()) return transform.status();
  stage("quantize");
  absl::StatusOr<QuantizedWeight> quantized =
      backend.RoundToNearest(stream, format, transform->transform, problem.weight);
  if (!quantized.ok()) return quantized.status();
  return Attempt{
      .damping = damping, .transform = *std::move(transform), .quantized = *std::move(quantized)};
}

// Whether the recipe leaves the damping of its transform open, and there is something to judge by.
bool Searches(const LayerProblem& problem) {
  const Recipe& recipe = problem.recipe;
  return IsDataAware(recipe.transform) && recipe.solver == Solver::kMarginal &&
         !recipe.damping.has_value() && !problem.sample.empty();
}

absl::StatusOr<Attempt> SearchDamping(Backend& backend, Stream& stream, const LayerProblem& problem,
                                      const NumberFormat& format,
                                      absl::FunctionRef<void(absl::string_view)> stage) {
  std::optional<Attempt> best;
  double least = 0.0;
  for (const double damping : kDampingCandidates) {
    absl::StatusOr<Attempt> attempt = SolveWith(backend, stream, problem, format, damping, stage);
    if (!attempt.ok()) return attempt.status();
    absl::StatusOr<OutputError> error =
        backend.MeasureOutputError(stream, format, attempt->transform.transform,
                                   attempt->quantized.decoded, problem.sample, problem.outputs);
    if (!error.ok()) return error.status();
    if (!best.has_value() || error->error < least) {
      least = error->error;
      best = *std::move(attempt);
    }
  }
  return *std::move(best);
}

class Rtn final : public QuantizationMethod {
 public:
  absl::StatusOr<LayerSolution> Solve(
      Backend& backend, Stream& stream, const LayerProblem& problem,
      absl::FunctionRef<void(absl::string_view)> stage) const override {
    const auto format = NumberFormat::Create(problem.recipe, problem.weight.dim(1));
    absl::StatusOr<Attempt> best =
        Searches(problem)
            ? SearchDamping(backend, stream, problem, *format, stage)
            : SolveWith(backend, stream, problem, *format,
                        problem.recipe.damping.value_or(kDampingWithoutSample), stage);
    if (!best.ok()) return best.status();
    LayerSolution solution;
    solution.transform = std::move(best->transform);
    solution.damping = solution.transform.damping_max;
    solution.retries = solution.transform.damped_blocks;
    solution.outcome = solution.retries > 0 ? Outcome::kDamped : Outcome::kExact;
    stage("pack");
    absl::Status status =
        SetQuantized(backend, stream, *format, std::move(best->quantized), solution);
    if (!status.ok()) return status;
    return solution;
  }
};

}  // namespace

absl::StatusOr<double> PickTransformDamping(Backend& backend, Stream& stream,
                                            const LayerProblem& problem,
                                            absl::FunctionRef<void(absl::string_view)> stage) {
  if (!Searches(problem)) return problem.recipe.damping.value_or(kDampingWithoutSample);
  const auto format = NumberFormat::Create(problem.recipe, problem.weight.dim(1));
  LayerProblem part = problem;
  const int64_t rows = std::min(kRowsToPickBy, problem.sample.dim(0));
  absl::StatusOr<DeviceTensor> sample = backend.SliceRows(stream, problem.sample, 0, rows);
  if (!sample.ok()) return sample.status();
  absl::StatusOr<DeviceTensor> outputs = backend.SliceRows(stream, problem.outputs, 0, rows);
  if (!outputs.ok()) return outputs.status();
  part.sample = *std::move(sample);
  part.outputs = *std::move(outputs);
  absl::StatusOr<Attempt> best = SearchDamping(backend, stream, part, *format, stage);
  if (!best.ok()) return best.status();
  return best->damping;
}

const QuantizationMethod& RtnMethod() {
  static const Rtn method;
  return method;
}

}  // namespace quantd::compute
