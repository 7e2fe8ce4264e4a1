#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "compute/backend/cpu/cpu_backend.h"
#include "compute/stages/method.h"

namespace quantd::compute {

// Tests of a method on a small layer of normal weights whose inputs are correlated and, some of
// them, large. The sample is all there is: the moments are its own.
class CorrelatedLayer : public testing::Test {
 protected:
  static constexpr int64_t kRows = 40;
  static constexpr int64_t kCols = 64;
  static constexpr int64_t kBlock = 32;

  explicit CorrelatedLayer(int64_t tokens) {
    std::mt19937 generator(1);
    std::normal_distribution<double> normal;
    Tensor w = Tensor::Create(DType::kF64, {kRows, kCols}).value();
    for (double& value : w.as<double>()) value = normal(generator);
    Tensor x = Tensor::Create(DType::kF64, {tokens, kCols}).value();
    for (int64_t t = 0; t < tokens; ++t) {
      const double shared = normal(generator);
      for (int64_t c = 0; c < kCols; ++c) {
        x.as<double>()[t * kCols + c] = (normal(generator) + shared) * (c % 9 == 0 ? 15 : 1);
      }
    }
    problem_.weight = backend_->Upload(*stream_, w).value();
    problem_.sample = backend_->Upload(*stream_, x).value();
    problem_.outputs = backend_->ComputeOutputs(*stream_, problem_.weight, problem_.sample).value();
    SetMoment([&](int64_t i, int64_t j) {
      double sum = 0.0;
      for (int64_t t = 0; t < tokens; ++t) {
        sum += x.as<double>()[t * kCols + i] * x.as<double>()[t * kCols + j] /
               static_cast<double>(tokens);
      }
      return sum;
    });
  }

  // The full moment and its diagonal blocks.
  template <typename Entry>
  void SetMoment(const Entry& entry) {
    Tensor full = Tensor::Create(DType::kF64, {kCols, kCols}).value();
    Tensor blocks = Tensor::Create(DType::kF64, {kCols / kBlock, kBlock, kBlock}).value();
    for (int64_t i = 0; i < kCols; ++i) {
      for (int64_t j = 0; j < kCols; ++j) {
        full.as<double>()[i * kCols + j] = entry(i, j);
        if (i / kBlock == j / kBlock) {
          blocks.as<double>()[i * kBlock + j % kBlock] = full.as<double>()[i * kCols + j];
        }
      }
    }
    problem_.full_moment = backend_->Upload(*stream_, full).value();
    problem_.block_moment = backend_->Upload(*stream_, blocks).value();
  }

  // Resolves the recipe and tells `stages_`.
  absl::StatusOr<LayerSolution> SolveBy(const QuantizationMethod& method, const Recipe& recipe) {
    problem_.recipe = ResolveRecipe(recipe).value();
    return method.Solve(*backend_, *stream_, problem_,
                        [this](absl::string_view stage) { stages_.emplace_back(stage); });
  }

  // Of weight and activations, on the sample.
  double Error(const LayerSolution& solution) {
    const auto format = NumberFormat::Create(problem_.recipe, kCols);
    return backend_
        ->MeasureOutputError(*stream_, *format, solution.transform.transform, solution.decoded,
                             problem_.sample, problem_.outputs)
        ->error;
  }

  const std::unique_ptr<Backend> backend_ = NewCpuBackend(2);
  const std::unique_ptr<Stream> stream_ = backend_->NewStream(nullptr).value();
  LayerProblem problem_;
  std::vector<std::string> stages_;
};

}  // namespace quantd::compute
