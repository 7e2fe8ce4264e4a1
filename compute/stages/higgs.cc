#include "compute/stages/higgs.h"

#include <memory>
#include <utility>

#include "compute/formats/grid_weight.h"

namespace quantd::compute {
namespace {

class Higgs final : public QuantizationMethod {
 public:
  // On the host: rounding to a grid is one pass over the weights, about as long as their upload.
  absl::StatusOr<LayerSolution> Solve(
      Backend& backend, Stream& stream, const LayerProblem& problem,
      absl::FunctionRef<void(absl::string_view)> stage) const override {
    const int64_t rows = problem.weight.dim(0);
    const int64_t cols = problem.weight.dim(1);
    stage("quantize");
    absl::StatusOr<Tensor> weight = backend.Download(stream, problem.weight);
    if (!weight.ok()) return weight.status();
    const auto encoded =
        GridWeight::Quantize(GridSpecOf(problem.recipe), weight->as<double>(), rows, cols);
    if (!encoded.ok()) return encoded.status();
    (*encoded)->Dequantize(0, rows, weight->as<double>());
    absl::StatusOr<DeviceTensor> dequantized = backend.Upload(stream, *weight);
    if (!dequantized.ok()) return dequantized.status();

    LayerSolution solution;
    solution.transform.transform = {
        .block_size = problem.recipe.transform_block_size, .tx = {}, .tw = {}, .identity = true};
    solution.encoded = *encoded;
    solution.dequantized = *std::move(dequantized);
    return solution;
  }
};

}  // namespace

const QuantizationMethod& HiggsMethod() {
  static const Higgs method;
  return method;
}

}  // namespace quantd::compute
