// Whole layers on the first CUDA device beside the device's own ceilings, measured in the same run.
// Shapes are Llama-3.1-8B's. Prints one JSON object a line; docs/benchmarks.md explains them.
//
//   cuda_bench [NAME]      only the lines whose name contains NAME
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_backend.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/backend/cuda/gram_sum.h"
#include "compute/stages/measure.h"
#include "compute/stages/method.h"
#include "tests/bench/synthetic_layer.h"
#include "tests/bench/timing.h"

namespace quantd::compute {
namespace {

constexpr int64_t kSampleRows = 512;

struct Shape {
  int64_t rows;
  int64_t cols;
};
constexpr Shape kShapes[] = {{4096, 4096}, {14336, 4096}, {4096, 14336}};

// Benchmarks end at the first error: a figure of a failed run is none.
void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "cuda_bench: %s\n", status.ToString().c_str());
  std::exit(1);
}
template <typename T>
T Get(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}
void Check(cudaError_t code) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "cuda_bench: %s\n", cudaGetErrorString(code));
  std::exit(1);
}

std::string NameOf(const Shape& shape) { return absl::StrCat(shape.rows, "x", shape.cols); }

// Ceilings ---------------------------------------------------------------------------------------

class DeviceBytes {
 public:
  explicit DeviceBytes(int64_t bytes) { Check(cudaMalloc(&data_, static_cast<size_t>(bytes))); }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

double SecondsOnDevice(const std::function<void()>& work) {
  return MedianSeconds([&] {
    work();
    Check(cudaDeviceSynchronize());
  });
}

void PrintProductPeak(const std::string& name, cudaDataType_t type, cublasComputeType_t compute,
                      int64_t bytes_each) {
  constexpr int kSize = 8192;
  DeviceBytes a(kSize * kSize * bytes_each);
  DeviceBytes b(kSize * kSize * bytes_each);
  DeviceBytes c(kSize * kSize * 8);
  // Random bits with small exponents: zeros would run faster than data does.
  std::vector<uint32_t> noise(kSize * kSize * bytes_each / 4);
  uint32_t state = 1;
  for (uint32_t& word : noise) {
    state = state * 1664525u + 1013904223u;
    word = state & 0xbfffbfffu & (bytes_each == 8 ? 0x3fffffffu : 0x3fff3fffu);
  }
  Check(cudaMemcpy(a.get(), noise.data(), noise.size() * 4, cudaMemcpyHostToDevice));
  Check(cudaMemcpy(b.get(), noise.data(), noise.size() * 4, cudaMemcpyHostToDevice));
  cublasHandle_t blas;
  if (cublasCreate(&blas) != CUBLAS_STATUS_SUCCESS) Check(absl::InternalError("cublasCreate"));
  const double one_double = 1.0;
  const double zero_double = 0.0;
  const float one = 1.0f;
  const float zero = 0.0f;
  const bool is_double = bytes_each == 8;
  const double seconds = SecondsOnDevice([&] {
    const cublasStatus_t status = cublasGemmEx(
        blas, CUBLAS_OP_T, CUBLAS_OP_N, kSize, kSize, kSize,
        is_double ? static_cast<const void*>(&one_double) : &one, a.get(), type, kSize, b.get(),
        type, kSize, is_double ? static_cast<const void*>(&zero_double) : &zero, c.get(),
        is_double ? CUDA_R_64F : CUDA_R_32F, kSize, compute, CUBLAS_GEMM_DEFAULT);
    if (status != CUBLAS_STATUS_SUCCESS) Check(absl::InternalError("cublasGemmEx"));
  });
  cublasDestroy(blas);
  Print(name, 2.0 * kSize * kSize * kSize / seconds / 1e12, "TFLOP/s");
}

void PrintCeilings() {
  PrintProductPeak("ceiling_product_bf16", CUDA_R_16BF, CUBLAS_COMPUTE_32F, 2);
  PrintProductPeak("ceiling_product_float64", CUDA_R_64F, CUBLAS_COMPUTE_64F, 8);
  constexpr int64_t kBytes = int64_t{1} << 31;
  DeviceBytes a(kBytes);
  DeviceBytes b(kBytes);
  const double copy = SecondsOnDevice(
      [&] { Check(cudaMemcpyAsync(a.get(), b.get(), kBytes, cudaMemcpyDeviceToDevice)); });
  Print("ceiling_device_copy", 2.0 * kBytes / copy / 1e12, "TB/s");
  for (const bool pinned : {true, false}) {
    constexpr int64_t kHostBytes = int64_t{1} << 28;
    void* host = nullptr;
    if (pinned) {
      Check(cudaMallocHost(&host, kHostBytes));
    } else {
      host = std::calloc(1, kHostBytes);
    }
    std::fill_n(static_cast<char*>(host), kHostBytes, 1);
    const double seconds = SecondsOnDevice(
        [&] { Check(cudaMemcpyAsync(a.get(), host, kHostBytes, cudaMemcpyHostToDevice)); });
    Print(pinned ? "ceiling_host_to_device_pinned" : "ceiling_host_to_device_pageable",
          kHostBytes / seconds / 1e9, "GB/s");
    if (pinned) {
      Check(cudaFreeHost(host));
    } else {
      std::free(host);
    }
  }
}

// Layers -----------------------------------------------------------------------------------------

// Everything about a layer, resident on the device.
struct Resident {
  LayerProblem problem;
  std::unique_ptr<Stream> stream;
};

Resident MakeResident(Backend& backend, const Shape& shape) {
  const SyntheticLayer layer = MakeSyntheticLayer(shape.rows, shape.cols, kSampleRows, 1);
  Resident resident;
  resident.stream = Get(backend.NewStream(nullptr));
  Stream& stream = *resident.stream;
  LayerProblem& problem = resident.problem;
  problem.weight = Get(backend.Upload(stream, layer.weight));
  problem.full_moment = Get(backend.Upload(stream, layer.moment));
  problem.sample = Get(backend.Upload(stream, layer.sample));
  problem.outputs = Get(backend.ComputeOutputs(stream, problem.weight, problem.sample));
  return resident;
}

// The figures of the report that a layer has of its own; `baselines`: also those of RTN with no and
// with Hadamard's transform.
void Report(Backend& backend, Resident& resident, const NumberFormat* format,
            const LayerSolution& solution, bool baselines) {
  Stream& stream = *resident.stream;
  const LayerProblem& problem = resident.problem;
  const Reference reference =
      Get(PrepareReference(backend, stream, problem.weight, problem, problem.full_moment));
  ErrorReport report;
  const Candidate own = {.transform = solution.transform.transform,
                         .dequantized = solution.dequantized,
                         .decoded = solution.decoded};
  const int64_t block = problem.recipe.transform_block_size;
  Check(MeasureErrors(backend, stream, format, reference, own, block, report));
  if (!baselines || format == nullptr) return;
  for (const TransformKind kind : {TransformKind::kIdentity, TransformKind::kHadamard}) {
    const TransformSolution transform = Get(backend.SolveTransforms(
        stream,
        {.kind = kind, .block_size = block, .weight = problem.weight, .second_moment = {}}));
    const QuantizedWeight rounded =
        Get(backend.RoundToNearest(stream, *format, transform.transform, problem.weight));
    const Candidate candidate = {.transform = transform.transform,
                                 .dequantized = rounded.dequantized,
                                 .decoded = rounded.decoded};
    Get(MeasureBaseline(backend, stream, *format, reference, candidate));
  }
}

// The whole layer as a service would run it, from resident inputs to codes on the host and report;
// bringing the codes to the host is the stage `pack`.
void PrintLayer(Backend& backend, Resident& resident, const std::string& name,
                const Recipe& given) {
  LayerProblem& problem = resident.problem;
  problem.recipe = Get(ResolveRecipe(given));
  problem.block_moment = {};
  if (IsDataAware(problem.recipe.transform)) {
    problem.block_moment = Get(backend.DiagonalBlocks(*resident.stream, problem.full_moment,
                                                      problem.recipe.transform_block_size));
  }
  const auto format = NumberFormat::Create(problem.recipe, problem.weight.dim(1));
  const QuantizationMethod* method = Get(FindMethod(problem.recipe.method));
  std::map<std::string, double> stages;
  std::string stage;
  Clock::time_point began;
  const auto enter = [&](absl::string_view next) {
    Check(resident.stream->Synchronize());
    const Clock::time_point now = Clock::now();
    if (!stage.empty()) stages[stage] += std::chrono::duration<double>(now - began).count() * 1e3;
    stage = std::string(next);
    began = now;
  };
  const auto run = [&](bool baselines) {
    return MedianSeconds([&] {
      stages.clear();
      stage.clear();
      const LayerSolution solution = Get(method->Solve(backend, *resident.stream, problem, enter));
      enter("report");
      Report(backend, resident, format.get(), solution, baselines);
      enter("");
    });
  };
  const double with_baselines = format == nullptr ? 0.0 : run(true);
  const double seconds = run(false);
  Print(absl::StrCat(name, "_", problem.weight.dim(0), "x", problem.weight.dim(1)), seconds * 1e3,
        "ms",
        {{"milliseconds_by_stage", stages},
         {"with_baselines", with_baselines * 1e3},
         {"peak_bytes", resident.stream->peak_bytes()}});
}

struct Case {
  std::string name;
  Recipe recipe;
};
std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const Format format : {Format::kMxfp4, Format::kNvfp4}) {
    for (const Method method : {Method::kRtn, Method::kGptq}) {
      cases.push_back({absl::StrCat("wush_", NameOf(format), "_", NameOf(method)),
                       {.format = format,
                        .transform = TransformKind::kWush,
                        .method = method,
                        .damping = 1e-2}});
    }
  }
  cases.push_back(
      {"wush_mxfp4_gptq_damping_picked",
       {.format = Format::kMxfp4, .transform = TransformKind::kWush, .method = Method::kGptq}});
  cases.push_back({"watersic_3bit",
                   {.format = Format::kEntropyCoded, .method = Method::kWaterSic, .rate_bits = 3}});
  return cases;
}

void PrintEigenvalues(Backend& backend, Resident& resident) {
  const double seconds =
      SecondsOf([&] { Get(backend.Eigenvalues(*resident.stream, resident.problem.full_moment)); });
  Print(absl::StrCat("eigenvalues_", resident.problem.full_moment.dim(0)), seconds * 1e3, "ms");
}

// Second moments ---------------------------------------------------------------------------------

// Tokens that are on the device already; counted as a full product, beside cuBLAS's in ceiling_*.
void PrintSecondMoment(int64_t cols, int64_t tokens) {
  CudaDevice device(0, 0);
  const auto stream = Get(CudaStream::Create(device, nullptr));
  const auto products = Get(CudaGramSum::ChooseProducts(0));
  const auto sum = Get(CudaGramSum::Create(*stream, products, cols, {}));
  constexpr int64_t kDistinctTokens = 4096;
  const SyntheticLayer layer = MakeSyntheticLayer(kDistinctTokens, cols, 1, 3);
  const absl::Span<const std::byte> bytes = layer.weight.bytes();
  const DeviceBytes rows(tokens * cols * 2);
  for (int64_t token = 0; token < tokens; token += kDistinctTokens) {
    Check(cudaMemcpy(static_cast<std::byte*>(rows.get()) + token * cols * 2, bytes.data(),
                     bytes.size(), cudaMemcpyHostToDevice));
  }
  const double seconds = MedianSeconds([&] {
    Check(sum->AddNarrow(static_cast<const uint16_t*>(rows.get()), tokens / kSliceTokens));
    Check(stream->Synchronize());
  });
  Print(absl::StrCat("second_moment_bf16_", cols),
        2.0 * static_cast<double>(tokens * cols * cols) / seconds / 1e12, "TFLOP/s",
        {{"tokens", tokens}, {"milliseconds", seconds * 1e3}});
}

// From host memory in chunks of 1 MiB, as a stream brings them. What twice the chunks take longer
// is the rate; the rest of the time is that of reading the sum back.
void PrintAccumulation(Backend& backend, int64_t cols) {
  const int64_t tokens = (int64_t{1} << 20) / (2 * cols);
  const SyntheticLayer layer = MakeSyntheticLayer(tokens, cols, 1, 2);
  const auto accumulator = Get(backend.NewAccumulator({.cols = cols}, nullptr));
  int64_t token = 0;
  constexpr int kChunks = 1024;
  const auto seconds_of = [&](int chunks) {
    return MedianSeconds([&] {
      for (int i = 0; i < chunks; ++i) {
        Check(accumulator->Add("bench", token, DType::kBF16, tokens, layer.weight.bytes()));
        token += tokens;
      }
      Get(accumulator->Snapshot());
    });
  };
  const double once = seconds_of(kChunks);
  const double twice = seconds_of(2 * kChunks);
  const double bytes = kChunks * static_cast<double>(layer.weight.bytes().size());
  Print(absl::StrCat("accumulate_bf16_", cols), bytes / (twice - once) / 1e9, "GB/s",
        {{"snapshot_milliseconds", (2.0 * once - twice) * 1e3}});
}

void Run(const std::string& filter) {
  const auto backend = Get(NewCudaBackend(0, 0));
  const auto wanted = [&](const std::string& name) { return absl::StrContains(name, filter); };
  Print("device", static_cast<double>(backend->Describe().memory_bytes) / 1e9, "GB",
        {{"description", backend->Describe().description}});
  if (wanted("ceiling")) PrintCeilings();
  if (wanted("second_moment")) {
    PrintSecondMoment(4096, 65536);
    PrintSecondMoment(14336, 32768);
  }
  for (const int64_t cols : {4096, 14336}) {
    if (wanted("accumulate")) PrintAccumulation(*backend, cols);
  }
  for (const Shape& shape : kShapes) {
    Resident resident = MakeResident(*backend, shape);
    for (const Case& each : Cases()) {
      if (wanted(absl::StrCat(each.name, "_", NameOf(shape)))) {
        PrintLayer(*backend, resident, each.name, each.recipe);
      }
    }
    if (shape.rows != 14336 && wanted("eigenvalues")) PrintEigenvalues(*backend, resident);
  }
}

}  // namespace
}  // namespace quantd::compute

int main(int argc, char** argv) { quantd::compute::Run(argc > 1 ? argv[1] : ""); }
