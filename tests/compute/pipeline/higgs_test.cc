#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "compute/backend/cpu/cpu_backend.h"
#include "compute/pipeline/pipeline.h"

namespace quantd::compute {
namespace {

constexpr int64_t kCols = 512;

Tensor NormalWeight(int64_t rows, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  Tensor weight = Tensor::Create(DType::kF32, {rows, kCols}).value();
  for (float& value : weight.as<float>()) value = normal(random);
  return weight;
}

double RelativeError(const Tensor& weight, const Tensor& decoded) {
  double error = 0.0;
  double energy = 0.0;
  for (int64_t i = 0; i < weight.elements(); ++i) {
    const double value = weight.as<float>()[i];
    error += (value - decoded.as<float>()[i]) * (value - decoded.as<float>()[i]);
    energy += value * value;
  }
  return error / energy;
}

absl::StatusOr<std::vector<LayerResult>> Quantize(const Recipe& recipe,
                                                  absl::Span<const LayerInput> layers) {
  static const std::unique_ptr<Backend> backend = NewCpuBackend(1);
  return QuantizeLayers(*backend, recipe, layers, {}, nullptr, nullptr);
}

Recipe HiggsRecipe(double bits, int64_t dimension) {
  Recipe recipe;
  recipe.format = Format::kGaussianGrid;
  recipe.method = Method::kHiggs;
  recipe.rate_bits = bits;
  recipe.grid_dimension = dimension;
  recipe.seed = 3;
  return ResolveRecipe(recipe).value();
}

TEST(Higgs, NeedsNoDataAndReportsWhatDecodes) {
  // Errors of the grids (gaussian_grid.cc); vectors of two beat single values at every rate.
  const std::map<std::pair<int, int>, double> errors = {{{2, 1}, 0.1175},   {{3, 1}, 0.03454},
                                                        {{4, 1}, 0.009497}, {{2, 2}, 0.107596},
                                                        {{3, 2}, 0.029770}, {{4, 2}, 0.007808}};
  const Tensor weight = NormalWeight(192, 1);
  const LayerInput layer = {.name = "layer", .weight = &weight};
  for (const auto& [grid, error] : errors) {
    const auto [bits, dimension] = grid;
    SCOPED_TRACE(std::to_string(bits) + " bits, p = " + std::to_string(dimension));
    const auto results = Quantize(HiggsRecipe(bits, dimension), {&layer, 1});
    ASSERT_TRUE(results.ok()) << results.status();
    const ErrorReport& report = results->front().report;
    const auto decoded = DequantizeResult(results->front().tensors, report.recipe_json);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    const double measured = RelativeError(weight, *decoded);
    EXPECT_NEAR(measured, error, 0.04 * error);
    EXPECT_NEAR(report.relative_weight_error, measured, 1e-5 * measured);
    EXPECT_NEAR(report.bits_per_weight, bits + 16.0 / 256, 0.001);
    EXPECT_FALSE(report.relative_output_error_weight_only.has_value());
  }
}

TEST(Higgs, LayersOfAGroupDecodeAlone) {
  const Tensor a = NormalWeight(16, 1);
  const Tensor b = NormalWeight(48, 2);
  const std::vector<LayerInput> layers = {{.name = "a", .weight = &a}, {.name = "b", .weight = &b}};
  const auto results = Quantize(HiggsRecipe(4, 2), layers);
  ASSERT_TRUE(results.ok()) << results.status();
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerResult& result = (*results)[i];
    const auto decoded = DequantizeResult(result.tensors, result.report.recipe_json);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_NEAR(RelativeError(*layers[i].weight, *decoded), result.report.relative_weight_error,
                1e-6);
  }
}

}  // namespace
}  // namespace quantd::compute
