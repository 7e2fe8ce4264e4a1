#include "tests/bench/synthetic_layer.h"

#include <cmath>
#include <random>
#include <vector>

#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {
namespace {

constexpr double kCorrelation = 0.7;  // of neighbouring columns
constexpr double kCommon = 0.3;       // of every column with one common direction

// Magnitudes over three octaves; every 128th column is an outlier.
std::vector<double> Magnitudes(int64_t cols, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> magnitudes(cols);
  for (int64_t c = 0; c < cols; ++c) {
    magnitudes[c] = std::exp2(normal(random)) * (c % 128 == 5 ? 30.0 : 1.0);
  }
  return magnitudes;
}

}  // namespace

SyntheticLayer MakeSyntheticLayer(int64_t rows, int64_t cols, int64_t sample_rows, uint64_t seed) {
  WorkerPool pool;
  const std::vector<double> magnitude = Magnitudes(cols, seed);
  SyntheticLayer layer = {.weight = Tensor::Create(DType::kBF16, {rows, cols}).value(),
                          .moment = Tensor::Create(DType::kF64, {cols, cols}).value(),
                          .sample = Tensor::Create(DType::kF32, {sample_rows, cols}).value()};
  pool.ParallelFor(0, rows, 16, [&](int64_t b, int64_t e) {
    std::mt19937_64 random(seed + 1 + b);
    std::student_t_distribution<double> heavy(5.0);
    for (int64_t i = b * cols; i < e * cols; ++i) {
      layer.weight.as<uint16_t>()[i] = FloatToBf16(static_cast<float>(0.02 * heavy(random)));
    }
  });
  std::vector<double> power(cols);
  for (int64_t k = 0; k < cols; ++k) power[k] = std::pow(kCorrelation, k);
  pool.ParallelFor(0, cols, 16, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) {
      double* row = layer.moment.as<double>().data() + i * cols;
      for (int64_t j = 0; j < cols; ++j) {
        row[j] = magnitude[i] * magnitude[j] * (power[std::abs(i - j)] + kCommon * kCommon);
      }
    }
  });
  const double fresh = std::sqrt(1.0 - kCorrelation * kCorrelation);
  pool.ParallelFor(0, sample_rows, 4, [&](int64_t b, int64_t e) {
    std::mt19937_64 random(seed + 1000003 + b);
    std::normal_distribution<double> normal;
    for (int64_t t = b; t < e; ++t) {
      const double common = kCommon * normal(random);
      double carry = normal(random);
      for (int64_t c = 0; c < cols; ++c) {
        if (c > 0) carry = kCorrelation * carry + fresh * normal(random);
        layer.sample.as<float>()[t * cols + c] =
            static_cast<float>(magnitude[c] * (carry + common));
      }
    }
  });
  return layer;
}

}  // namespace quantd::compute
