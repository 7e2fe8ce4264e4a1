#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "compute/backend/backend.h"
#include "compute/backend/cpu/cpu_backend.h"
#include "compute/backend/cuda/cuda_backend.h"

// Conformance: every op of the CUDA backend against the CPU backend, which is the float64
// reference. Needs a GPU: these tests fail without one, and CI, which has none, only builds them.
namespace quantd::compute {

// A file of tests/golden: of the folder in the environment's QUANTD_GOLDEN_DIR, which a program
// that was built on another machine needs, or of the sources that it was built from.
inline std::string GoldenFile(const std::string& name) {
  const char* folder = std::getenv("QUANTD_GOLDEN_DIR");
  return std::string(folder != nullptr ? folder : QUANTD_GOLDEN_DIR) + "/" + name;
}

class CudaTest : public testing::Test {
 protected:
  // One device of the two, and one stream on it.
  struct Side {
    std::unique_ptr<Backend> backend;
    std::unique_ptr<Stream> stream;

    DeviceTensor Upload(const Tensor& tensor) { return backend->Upload(*stream, tensor).value(); }
    std::vector<double> Values(const DeviceTensor& tensor) {
      const Tensor host = backend->Download(*stream, tensor).value();
      std::vector<double> values(host.elements());
      if (host.dtype() == DType::kI32) {
        const auto codes = host.as<int32_t>();
        values.assign(codes.begin(), codes.end());
      } else {
        ConvertToDouble(host.dtype(), host.bytes().data(), host.elements(), values.data());
      }
      return values;
    }
  };

  CudaTest() {
    cpu_.backend = NewCpuBackend(0);
    cpu_.stream = cpu_.backend->NewStream(nullptr).value();
    cuda_.backend = NewCudaBackend(0, 0).value();
    cuda_.stream = cuda_.backend->NewStream(nullptr).value();
  }

  // Heavy-tailed: some columns carry most of the energy.
  static Tensor Random(std::vector<int64_t> shape, int seed, DType dtype = DType::kF64) {
    Tensor tensor = Tensor::Create(dtype, shape).value();
    const int64_t cols = shape.back();
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < tensor.elements(); ++i) {
      const double value = normal(generator) * (i % cols % 17 == 0 ? 8.0 : 1.0);
      if (dtype == DType::kF32) tensor.as<float>()[i] = static_cast<float>(value);
      if (dtype == DType::kF64) tensor.as<double>()[i] = value;
    }
    return tensor;
  }
  // X^T X / T of correlated tokens: symmetric, positive definite for T > C.
  static Tensor RandomMoment(int64_t cols, int seed, int64_t tokens = 0) {
    if (tokens == 0) tokens = 2 * cols + 8;
    const Tensor x = Random({tokens, cols}, seed);
    Tensor mixed = Tensor::Create(DType::kF64, {tokens, cols}).value();
    for (int64_t t = 0; t < tokens; ++t) {
      double carry = 0.0;
      for (int64_t c = 0; c < cols; ++c) {
        carry = 0.6 * carry + x.as<double>()[t * cols + c];
        mixed.as<double>()[t * cols + c] = carry;
      }
    }
    Tensor m = Tensor::Create(DType::kF64, {cols, cols}).value();
    const double* from = mixed.as<double>().data();
    double* to = m.as<double>().data();
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < cols; ++i) {
        const double scaled = from[t * cols + i] / static_cast<double>(tokens);
        for (int64_t j = 0; j < cols; ++j) to[i * cols + j] += scaled * from[t * cols + j];
      }
    }
    return m;
  }
  // The diagonal blocks of a square matrix, C/B x B x B.
  static Tensor DiagonalBlocks(const Tensor& matrix, int64_t size) {
    const int64_t cols = matrix.dim(0);
    Tensor blocks = Tensor::Create(DType::kF64, {cols / size, size, size}).value();
    for (int64_t i = 0; i < cols; ++i) {
      for (int64_t j = 0; j < size; ++j) {
        blocks.as<double>()[i * size + j] = matrix.as<double>()[i * cols + i / size * size + j];
      }
    }
    return blocks;
  }
  // ||a - b|| / ||b||; NaN never passes a bound.
  static double RelativeDistance(const std::vector<double>& a, const std::vector<double>& b) {
    if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
    double error = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
      error += (a[i] - b[i]) * (a[i] - b[i]);
      norm += b[i] * b[i];
    }
    return norm > 0.0 ? std::sqrt(error / norm) : std::sqrt(error);
  }

  Side cpu_;
  Side cuda_;
};

}  // namespace quantd::compute
