// Speed of the compute library on the CPU beside what the machine can do. One JSON object a line.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "compute/backend/cpu/matrix_product.h"
#include "compute/backend/cpu/worker_pool.h"
#include "compute/backend/registry.h"
#include "compute/pipeline/pipeline.h"

namespace quantd::compute {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsOf(const std::function<void()>& work) {
  const Clock::time_point start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Median of runs over about half a second, at least three, after one to warm up.
double MedianSeconds(const std::function<void()>& work) {
  work();
  std::vector<double> seconds;
  double total = 0.0;
  while (seconds.size() < 3 || (total < 0.5 && seconds.size() < 1000)) {
    seconds.push_back(SecondsOf(work));
    total += seconds.back();
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

void Print(const std::string& name, double value, const std::string& unit,
           nlohmann::ordered_json more = nlohmann::ordered_json::object()) {
  nlohmann::ordered_json line = {{"name", name}, {"value", value}, {"unit", unit}};
  line.update(more);
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

#ifdef __AVX512F__
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif

// Multiply-adds that never leave the registers: enough chains to hide their latency.
template <typename T>
T SpinFma(int64_t rounds) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  constexpr int kChains = 12;
  Vector chains[kChains];
  Vector factor = Vector{} + T(0.999);
  Vector addend = Vector{} + T(0.001);
  for (int i = 0; i < kChains; ++i) chains[i] = Vector{} + T(i);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chains[i] = chains[i] * factor + addend;
  }
  T sum = 0;
  for (int i = 0; i < kChains; ++i) sum += chains[i][0];
  return sum;
}

// GFLOP/s of all threads together.
template <typename T>
double FmaPeak(WorkerPool& pool) {
  constexpr int64_t kRounds = 4'000'000;
  const double flops = 2.0 * 12 * (kVectorBytes / sizeof(T)) * kRounds * pool.threads();
  double best = 0.0;
  volatile T sink = 0;
  for (int run = 0; run < 5; ++run) {
    const double seconds = SecondsOf([&] {
      std::vector<T> sums(pool.threads());
      pool.ParallelFor(0, pool.threads(), 1,
                       [&](int64_t b, int64_t) { sums[b] = SpinFma<T>(kRounds); });
      sink = sums[0];
    });
    best = std::max(best, flops / seconds / 1e9);
  }
  static_cast<void>(sink);
  return best;
}

Tensor Random(DType dtype, std::vector<int64_t> shape, int seed) {
  Tensor tensor = Tensor::Create(dtype, std::move(shape)).value();
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  const int64_t cols = tensor.shape().back();
  for (int64_t i = 0; i < tensor.elements(); ++i) {
    // A few columns are much larger, as in real activations.
    const float value = normal(generator) * (i % cols % 61 == 0 ? 20.0f : 1.0f);
    if (dtype == DType::kBF16) {
      tensor.as<uint16_t>()[i] = FloatToBf16(value);
    } else {
      tensor.as<float>()[i] = value;
    }
  }
  return tensor;
}

// One square product over the pool, for what the BLAS reaches on this machine.
void BenchProduct(WorkerPool& pool, int64_t size) {
  const Tensor a = Random(DType::kF32, {size, size}, 1);
  Tensor c = Tensor::Create(DType::kF32, {size, size}).value();
  constexpr int64_t kTile = 384;
  const int64_t across = (size + kTile - 1) / kTile;
  const double seconds = MedianSeconds([&] {
    pool.ParallelFor(0, across * across, 1, [&](int64_t b, int64_t e) {
      for (int64_t tile = b; tile < e; ++tile) {
        const int64_t i = tile / across * kTile;
        const int64_t j = tile % across * kTile;
        TransposedMultiply(std::min(kTile, size - i), std::min(kTile, size - j), size,
                           a.as<float>().data() + i, size, a.as<float>().data() + j, size, 0.0f,
                           c.as<float>().data() + i * size + j, size);
      }
    });
  });
  const double gflops = 2.0 * size * size * size / seconds / 1e9;
  const double peak = FmaPeak<float>(pool);
  Print("sgemm_" + std::to_string(size), gflops, "GFLOP/s",
        {{"fma_peak_gflops", peak}, {"ratio_to_peak", gflops / peak}});
}

// Products that the accumulator really computes: the lower triangle, T C (C + 1) operations.
void BenchAccumulate(WorkerPool& pool, Backend& backend, DType dtype, int64_t cols) {
  constexpr int64_t kTokens = 4 * kSliceTokens;
  const Tensor x = Random(dtype, {kTokens, cols}, 2);
  auto accumulator = backend.NewAccumulator({.cols = cols}, nullptr).value();
  int64_t token = 0;
  const double seconds = MedianSeconds([&] {
    const absl::Status status = accumulator->Add("bench", token, dtype, kTokens, x.bytes());
    if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
    token += kTokens;
  });
  const double flops = static_cast<double>(kTokens) * cols * (cols + 1);
  const bool narrow = dtype == DType::kBF16;
  const double peak = narrow ? FmaPeak<float>(pool) : FmaPeak<double>(pool);
  Print("accumulate_" + std::string(narrow ? "bf16_" : "f32_") + std::to_string(cols),
        flops / seconds / 1e9, "GFLOP/s",
        {{"precision", narrow ? "float32" : "float64"},
         {"fma_peak_gflops", peak},
         {"ratio_to_peak", flops / seconds / 1e9 / peak},
         {"tokens_per_second", kTokens / seconds}});
}

void BenchRtn(Backend& backend, Format format, int64_t size) {
  const Recipe recipe = ResolveRecipe({.format = format}).value();
  const auto number_format = NumberFormat::Create(recipe, size);
  auto stream = backend.NewStream(nullptr).value();
  const DeviceTensor weight = backend.Upload(*stream, Random(DType::kF32, {size, size}, 3)).value();
  const BlockTransform identity = {.block_size = 32, .tx = {}, .tw = {}, .identity = true};
  const double seconds = MedianSeconds([&] {
    auto result = backend.RoundToNearest(*stream, *number_format, identity, weight);
    if (!result.ok()) std::fprintf(stderr, "%s\n", result.status().ToString().c_str());
  });
  Print("rtn_" + std::string(NameOf(format)) + "_" + std::to_string(size), seconds * 1e3, "ms",
        {{"gigaweights_per_second", 1e-9 * size * size / seconds}});
}

void BenchPipeline(Backend& backend, int64_t size) {
  const Tensor weight = Random(DType::kBF16, {size, size}, 4);
  const Tensor x = Random(DType::kBF16, {4096, size}, 5);
  auto accumulator = backend.NewAccumulator({.cols = size}, nullptr).value();
  const absl::Status added = accumulator->Add("bench", 0, DType::kBF16, 4096, x.bytes());
  if (!added.ok()) std::fprintf(stderr, "%s\n", added.ToString().c_str());
  const SecondMoment statistic = accumulator->Snapshot().value();
  const Recipe recipe =
      ResolveRecipe({.format = Format::kMxfp4, .transform = TransformKind::kWush}).value();
  const LayerInput layer = {.name = "bench", .weight = &weight};
  std::map<std::string, double> stages;
  int64_t peak_bytes = 0;
  const double seconds = MedianSeconds([&] {
    auto results = QuantizeLayers(backend, recipe, {&layer, 1}, &statistic, nullptr, nullptr);
    if (!results.ok()) {
      std::fprintf(stderr, "%s\n", results.status().ToString().c_str());
      return;
    }
    stages = results->front().report.seconds;
    peak_bytes = results->front().report.peak_bytes;
  });
  Print("pipeline_mxfp4_wush_" + std::to_string(size), seconds, "s",
        {{"seconds_by_stage", stages}, {"peak_bytes", peak_bytes}});
}

void Run(bool quick) {
  const auto backend = std::move(OpenBackends({}).back());
  WorkerPool pool;
  Print("fma_peak_float32", FmaPeak<float>(pool), "GFLOP/s",
        {{"threads", pool.threads()}, {"device", backend->Describe().description}});
  Print("fma_peak_float64", FmaPeak<double>(pool), "GFLOP/s", {{"threads", pool.threads()}});
  for (const int64_t size : {768, 1536, 4096}) {
    if (quick && size > 1536) continue;
    BenchProduct(pool, size);
    BenchAccumulate(pool, *backend, DType::kBF16, size);
    BenchAccumulate(pool, *backend, DType::kF32, size);
  }
  for (const int64_t size : {768, 4096}) {
    if (quick && size > 1536) continue;
    for (const Format format :
         {Format::kMxfp4, Format::kNvfp4, Format::kInt4, Format::kInt8, Format::kFp8}) {
      BenchRtn(*backend, format, size);
    }
  }
  for (const int64_t size : {384, 768, 1536}) BenchPipeline(*backend, size);
}

}  // namespace
}  // namespace quantd::compute

// --quick leaves the 4096-column cases out.
int main(int argc, char** argv) {
  quantd::compute::Run(argc > 1 && std::string(argv[1]) == "--quick");
  return 0;
}
