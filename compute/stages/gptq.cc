#include "compute/stages/gptq.h"

#include <utility>

#include "compute/stages/rtn.h"

namespace quantd::compute {
namespace {

absl::Status CheckMoments(const LayerProblem& problem) {
  if (problem.full_moment.empty()) {
    return absl::FailedPreconditionError("gptq needs a full second moment");
  }
  if (problem.recipe.gptq.asymmetric &&
      (problem.second_moment_hat.empty() || problem.cross_moment.empty())) {
    return absl::FailedPreconditionError(
        "gptq.asymmetric needs a second_moment_hat and a cross_moment");
  }
  return absl::OkStatus();
}

GptqProblem ProblemOf(const LayerProblem& problem, double transform_damping) {
  const Recipe& recipe = problem.recipe;
  const bool asymmetric = recipe.gptq.asymmetric;
  return {.transform = recipe.transform,
          .solver = recipe.solver,
          .block_size = recipe.transform_block_size,
          .transform_damping = transform_damping,
          .seed = recipe.seed,
          .order = recipe.gptq.order,
          .act_order = recipe.gptq.act_order,
          .damping = recipe.gptq.damping,
          .weight = problem.weight,
          .second_moment = asymmetric ? problem.second_moment_hat : problem.full_moment,
          .cross_moment = asymmetric ? problem.cross_moment : DeviceTensor()};
}

absl::StatusOr<LayerSolution> FallBack(Backend& backend, Stream& stream,
                                       const LayerProblem& problem,
                                       absl::FunctionRef<void(absl::string_view)> stage) {
  absl::StatusOr<LayerSolution> solution = RtnMethod().Solve(backend, stream, problem, stage);
  if (solution.ok()) solution->outcome = Outcome::kFallbackRtn;
  return solution;
}

class Gptq final : public QuantizationMethod {
 public:
  absl::StatusOr<LayerSolution> Solve(
      Backend& backend, Stream& stream, const LayerProblem& problem,
      absl::FunctionRef<void(absl::string_view)> stage) const override {
    if (absl::Status status = CheckMoments(problem); !status.ok()) return status;
    const auto format = NumberFormat::Create(problem.recipe, problem.weight.dim(1));
    const absl::StatusOr<double> damping = PickTransformDamping(backend, stream, problem, stage);
    if (!damping.ok()) return damping.status();
    stage("quantize");
    absl::StatusOr<GptqSolution> solved =
        backend.SolveGptq(stream, *format, ProblemOf(problem, *damping));
    if (absl::IsInvalidArgument(solved.status()) && problem.recipe.gptq.allow_rtn_fallback) {
      return FallBack(backend, stream, problem, stage);
    }
    if (!solved.ok()) return solved.status();

    LayerSolution solution;
    const int64_t damped_blocks = solved->transform.damped_blocks;
    solution.retries = solved->retries + damped_blocks;
    solution.outcome = solution.retries > 0 ? Outcome::kDamped : Outcome::kExact;
    solution.damping = solved->damping;
    solution.transform = std::move(solved->transform);
    stage("pack");
    absl::Status status =
        SetQuantized(backend, stream, *format, std::move(solved->quantized), solution);
    if (!status.ok()) return status;
    return solution;
  }
};

}  // namespace

const QuantizationMethod& GptqMethod() {
  static const Gptq method;
  return method;
}

}  // namespace quantd::compute
