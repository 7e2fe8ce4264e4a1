// Speed of the compute library on the CPU beside what the machine can do. One JSON object a line.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "compute/backend/cpu/cpu_backend.h"
#include "compute/backend/cpu/gram_sum.h"
#include "compute/backend/cpu/panel_buffer.h"
#include "compute/backend/cpu/worker_pool.h"
#include "compute/coding/entropy.h"
#include "compute/coding/integer_coder.h"
#include "compute/pipeline/pipeline.h"
#include "compute/stages/gptq.h"
#include "tests/bench/timing.h"

namespace quantd::compute {
namespace {

#ifdef __AVX512F__
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif

// Multiply-adds that never leave the registers: enough chains to hide their latency.
template <typename T>
T SpinFma(int64_t rounds) {
  using Vector __attribute__((vector_size(kVectorBytes))) = T;
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

constexpr int kFlopsPerRound = 2 * 12 * kVectorBytes;  // divided by sizeof(T)

// All threads at their peak for about `flops` operations.
template <typename T>
void SpinAllThreads(WorkerPool& pool, double flops) {
  static volatile T sink;
  const auto rounds = static_cast<int64_t>(flops * sizeof(T) / kFlopsPerRound / pool.threads());
  std::vector<T> sums(pool.threads());
  pool.ParallelFor(0, pool.threads(), 1, [&](int64_t b, int64_t) { sums[b] = SpinFma<T>(rounds); });
  sink = sink + sums[0];
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// CPU time of all threads of the process.
double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Timed {
  std::vector<double> wall;
  std::vector<double> cpu;
  void Add(const std::function<void()>& work) {
    const double before = CpuSeconds();
    wall.push_back(SecondsOf(work));
    cpu.push_back(CpuSeconds() - before);
  }
};

// Work of `flops` operations beside the same number of multiply-adds in registers, taking turns.
// The ratio by CPU time leaves out what other programs on the machine took.
template <typename T>
void PrintBesidePeak(WorkerPool& pool, const std::string& name, double flops,
                     const std::function<void()>& work,
                     nlohmann::ordered_json more = nlohmann::ordered_json::object()) {
  work();
  Timed product;
  Timed peak;
  const Clock::time_point start = Clock::now();
  while (product.wall.size() < 5 ||
         (Clock::now() - start < std::chrono::seconds(1) && product.wall.size() < 1000)) {
    product.Add(work);
    peak.Add([&] { SpinAllThreads<T>(pool, flops); });
  }
  const double seconds = Median(product.wall);
  more.update({{"fma_peak_gflops", flops / Median(peak.wall) / 1e9},
               {"ratio_to_peak", Median(peak.wall) / seconds},
               {"ratio_to_peak_by_cpu_time", Median(peak.cpu) / Median(product.cpu)},
               {"milliseconds", seconds * 1e3}});
  Print(name, flops / seconds / 1e9, "GFLOP/s", more);
}

template <typename T>
double FmaPeak(WorkerPool& pool) {
  constexpr double kFlops = 4e9;
  return kFlops / MedianSeconds([&] { SpinAllThreads<T>(pool, kFlops); }) / 1e9;
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

// Operations of a product's lower triangle: what is counted is what is needed.
double GramFlops(int64_t rows, int64_t cols) {
  return static_cast<double>(rows) * static_cast<double>(cols) * static_cast<double>(cols + 1);
}

// The products of one slice alone.
template <typename T>
void BenchGram(WorkerPool& pool, int64_t cols) {
  PanelBuffer<T> x(kSliceTokens, cols, GramSum::PanelWidth<T>());
  const Tensor rows = Random(DType::kF32, {kSliceTokens, cols}, 1);
  for (int64_t i = 0; i < kSliceTokens; ++i) x.WriteRow(i, rows.as<float>().data() + i * cols);
  GramSum sum(cols);
  const bool is_single = sizeof(T) == sizeof(float);
  PrintBesidePeak<T>(pool, (is_single ? "gram_float32_" : "gram_float64_") + std::to_string(cols),
                     GramFlops(kSliceTokens, cols), [&] { sum.Add(pool, x, kSliceTokens); });
}

// The same from chunks of activations: checks, sample, digest and conversion included.
template <typename T>
void BenchAccumulate(WorkerPool& pool, Backend& backend, DType dtype, int64_t cols) {
  constexpr int64_t kTokens = kSliceTokens;
  const Tensor x = Random(dtype, {kTokens, cols}, 2);
  auto accumulator = backend.NewAccumulator({.cols = cols}, nullptr).value();
  int64_t token = 0;
  PrintBesidePeak<T>(
      pool,
      "accumulate_" + std::string(dtype == DType::kBF16 ? "bf16_" : "f32_") + std::to_string(cols),
      GramFlops(kTokens, cols),
      [&] {
        const absl::Status status = accumulator->Add("bench", token, dtype, kTokens, x.bytes());
        if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
        token += kTokens;
      },
      {{"precision", sizeof(T) == sizeof(float) ? "float32" : "float64"}});
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

// GPTQ as a method, without the report: how it grows with the layer.
void BenchGptq(Backend& backend, Format format, TransformKind transform, int64_t size) {
  const Recipe recipe =
      ResolveRecipe({.format = format, .transform = transform, .method = Method::kGptq}).value();
  const Tensor x = Random(DType::kBF16, {2048, size}, 6);
  auto accumulator = backend.NewAccumulator({.cols = size}, nullptr).value();
  const absl::Status added = accumulator->Add("bench", 0, DType::kBF16, 2048, x.bytes());
  if (!added.ok()) std::fprintf(stderr, "%s\n", added.ToString().c_str());
  const SecondMoment statistic = accumulator->Snapshot().value();
  auto stream = backend.NewStream(nullptr).value();
  LayerProblem problem;
  problem.recipe = recipe;
  problem.weight = backend.Upload(*stream, Random(DType::kF32, {size, size}, 7)).value();
  problem.full_moment = backend.Upload(*stream, *statistic.FullMean()).value();
  problem.block_moment =
      backend.Upload(*stream, *statistic.BlockDiagonalMean(recipe.transform_block_size)).value();
  problem.sample = backend.Upload(*stream, Random(DType::kF32, {512, size}, 8)).value();
  problem.outputs = backend.ComputeOutputs(*stream, problem.weight, problem.sample).value();
  std::map<std::string, double> stages;
  std::string stage;
  Clock::time_point began;
  const auto enter = [&](absl::string_view next) {
    const Clock::time_point now = Clock::now();
    if (!stage.empty()) stages[stage] += std::chrono::duration<double>(now - began).count();
    stage = std::string(next);
    began = now;
  };
  double cpu = 0.0;
  const auto solve = [&] {
    stages.clear();
    stage.clear();
    const double before = CpuSeconds();
    auto solution = GptqMethod().Solve(backend, *stream, problem, enter);
    enter("");
    cpu = CpuSeconds() - before;
    if (!solution.ok()) std::fprintf(stderr, "%s\n", solution.status().ToString().c_str());
  };
  const double seconds = size > 1536 ? SecondsOf(solve) : MedianSeconds(solve);
  Print("gptq_" + std::string(NameOf(format)) + "_" + std::string(NameOf(transform)) + "_" +
            std::to_string(size),
        seconds, "s",
        {{"cpu_seconds", cpu}, {"seconds_by_stage", stages}, {"peak_bytes", stream->peak_bytes()}});
}

void BenchAllGptq(Backend& backend, bool quick) {
  for (const int64_t size : {384, 768, 1536, 3072}) {
    if (quick && size > 768) continue;
    for (const TransformKind transform :
         {TransformKind::kIdentity, TransformKind::kHadamard, TransformKind::kWush}) {
      BenchGptq(backend, Format::kMxfp4, transform, size);
    }
    BenchGptq(backend, Format::kNvfp4, TransformKind::kWush, size);
    BenchGptq(backend, Format::kInt4, TransformKind::kIdentity, size);
  }
}

// A whole layer: upload, solve, pack (for WaterSIC with its bitstream), report.
void BenchPipeline(Backend& backend, const std::string& name, const Recipe& given, int64_t size) {
  const Tensor weight = Random(DType::kBF16, {size, size}, 4);
  const Tensor x = Random(DType::kBF16, {4096, size}, 5);
  auto accumulator = backend.NewAccumulator({.cols = size}, nullptr).value();
  const absl::Status added = accumulator->Add("bench", 0, DType::kBF16, 4096, x.bytes());
  if (!added.ok()) std::fprintf(stderr, "%s\n", added.ToString().c_str());
  const SecondMoment statistic = accumulator->Snapshot().value();
  const Recipe recipe = ResolveRecipe(given).value();
  const LayerInput layer = {.name = "bench", .weight = &weight};
  std::map<std::string, double> stages;
  int64_t peak_bytes = 0;
  double bits = 0.0;
  const double seconds = MedianSeconds([&] {
    auto results = QuantizeLayers(backend, recipe, {&layer, 1}, {.second_moment = &statistic},
                                  nullptr, nullptr);
    if (!results.ok()) {
      std::fprintf(stderr, "%s\n", results.status().ToString().c_str());
      return;
    }
    stages = results->front().report.seconds;
    peak_bytes = results->front().report.peak_bytes;
    bits = results->front().report.bits_per_weight;
  });
  Print("pipeline_" + name + "_" + std::to_string(size), seconds, "s",
        {{"seconds_by_stage", stages}, {"peak_bytes", peak_bytes}, {"bits_per_weight", bits}});
}

// The bitstream of a layer whose columns spread over two octaves around `deviation`.
void BenchIntegerCoder(int64_t size, double deviation) {
  std::mt19937_64 random(6);
  std::normal_distribution<double> normal;
  std::vector<double> spread(size);
  for (double& each : spread) each = deviation * std::exp2(0.5 * normal(random));
  std::vector<int32_t> values(size * size);
  for (int64_t i = 0; i < size * size; ++i) {
    values[i] = static_cast<int32_t>(std::lround(spread[i % size] * normal(random)));
  }
  const CodedIntegers coded = EncodeIntegers(values, size).value();
  const double bits = 8.0 * static_cast<double>(coded.bytes()) / static_cast<double>(size * size);
  const auto print = [&](const std::string& name, const std::function<void()>& work) {
    const double seconds = MedianSeconds(work);
    Print(name + "_" + std::to_string(size), seconds * 1e3, "ms",
          {{"bits_a_value", bits},
           {"entropy", EmpiricalEntropy(values)},
           {"million_values_per_second", 1e-6 * static_cast<double>(size * size) / seconds}});
  };
  double sink = 0.0;
  print("estimate_coded_bits", [&] { sink += EstimateCodedBits(values, size); });
  print("encode_integers",
        [&] { sink += static_cast<double>(EncodeIntegers(values, size)->bytes()); });
  print("decode_integers", [&] { sink += DecodeIntegers(coded, size, size)->back(); });
  if (sink == 0.0) std::fprintf(stderr, "nothing was coded\n");
}

void Run(bool quick) {
  const auto backend = NewCpuBackend(0);
  WorkerPool pool;
  Print("fma_peak_float32", FmaPeak<float>(pool), "GFLOP/s",
        {{"threads", pool.threads()}, {"device", backend->Describe().description}});
  Print("fma_peak_float64", FmaPeak<double>(pool), "GFLOP/s", {{"threads", pool.threads()}});
  for (const int64_t size : {768, 1536, 4096}) {
    if (quick && size > 1536) continue;
    BenchGram<float>(pool, size);
    BenchGram<double>(pool, size);
    BenchAccumulate<float>(pool, *backend, DType::kBF16, size);
    BenchAccumulate<double>(pool, *backend, DType::kF32, size);
  }
  for (const int64_t size : {768, 4096}) {
    if (quick && size > 1536) continue;
    for (const Format format :
         {Format::kMxfp4, Format::kNvfp4, Format::kInt4, Format::kInt8, Format::kFp8}) {
      BenchRtn(*backend, format, size);
    }
  }
  for (const int64_t size : {768, 4096}) {
    if (quick && size > 1536) continue;
    for (const double deviation : {0.5, 2.0, 8.0}) BenchIntegerCoder(size, deviation);
  }
  for (const int64_t size : {384, 768, 1536}) {
    BenchPipeline(*backend, "mxfp4_wush",
                  {.format = Format::kMxfp4, .transform = TransformKind::kWush}, size);
  }
  for (const int64_t size : {384, 768, 1536, 3072}) {
    if (quick && size > 1536) continue;
    BenchPipeline(*backend, "watersic_3bit",
                  {.format = Format::kEntropyCoded, .method = Method::kWaterSic, .rate_bits = 3.0},
                  size);
  }
  BenchAllGptq(*backend, quick);
}

}  // namespace
}  // namespace quantd::compute

// --quick leaves the large cases out; --gptq runs only those of GPTQ.
int main(int argc, char** argv) {
  const std::string option = argc > 1 ? argv[1] : "";
  if (option == "--gptq") {
    quantd::compute::BenchAllGptq(*quantd::compute::NewCpuBackend(0), false);
    return 0;
  }
  quantd::compute::Run(option == "--quick");
  return 0;
}
