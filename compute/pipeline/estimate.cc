#include <algorithm>
#include <iterator>

#include "compute/formats/number_format.h"
#include "compute/pipeline/pipeline.h"
#include "compute/stages/rtn.h"

namespace quantd::compute {
namespace {

constexpr int64_t kSampleRows = 4096;  // the most that a statistic retains
constexpr int64_t kTypicalSampleRows = 512;

// Codes and scales. Of WaterSIC: the requested rate and scales of 16 bits.
int64_t CodeBytes(const Recipe& resolved, int64_t rows, int64_t cols) {
  const auto format = NumberFormat::Create(resolved, cols);
  if (format == nullptr) {
    const int64_t scales =
        resolved.method == Method::kHiggs ? rows * cols / resolved.group_size : rows + cols;
    return static_cast<int64_t>(static_cast<double>(rows * cols) * resolved.rate_bits / 8.0) +
           2 * scales;
  }
  const ScaleGrid grid = format->grid();
  return rows * cols * format->element_bits() / 8 +
         (rows + grid.rows - 1) / grid.rows * ((cols + grid.cols - 1) / grid.cols) *
             static_cast<int64_t>(SizeOf(format->scale_dtype()));
}

// Beyond what RTN takes: factorizations of C x C and the feedback of errors to later columns.
double MethodFlops(Method method, double rows, double cols) {
  constexpr double kRateSearchPasses = 6;
  constexpr double kRescalePasses = 10;
  const double factors = 2.0 * cols * cols * cols;
  switch (method) {
    case Method::kRtn:
    case Method::kHiggs:
      return 0.0;
    case Method::kGptq:
      return factors + rows * cols * cols;
    case Method::kWaterSic:
      return factors + (kRateSearchPasses + 2.0 * kRescalePasses) * rows * cols * cols;
  }
  return 0.0;
}

// Beyond what RTN takes: the factor, its copy where one unit is the whole row, the moments of drift
// and what the target is made of.
int64_t GptqBytes(const Recipe& resolved, int64_t rows, int64_t cols) {
  const bool wide = resolved.granularity == Granularity::kRow;
  const int64_t squares = 1 + (wide ? 4 : 0) + (resolved.gptq.asymmetric ? 3 : 0);
  return 8 * cols * cols * squares + 10 * rows * cols;
}

}  // namespace

LayerEstimate EstimateLayer(const Recipe& resolved, int64_t rows, int64_t cols, bool has_statistic,
                            double flops_per_second) {
  const int64_t block = resolved.transform_block_size;
  const int64_t weights = rows * cols;
  const int64_t transform = resolved.transform == TransformKind::kIdentity ? 0 : cols * block;

  LayerEstimate estimate;
  estimate.output_bytes = CodeBytes(resolved, rows, cols) + transform * 4 + 64;

  // The weight; decoded and dequantized values of the best and the current candidate, of a
  // baseline, and one more matrix in the making; transforms, F32 and F64, of as many.
  int64_t bytes = 8 * weights * 8 + cols * block * 12 * 4;
  if (has_statistic) {
    bytes += 8 * cols * cols + 8 * cols * block;
    bytes += 8 * kSampleRows * (2 * cols + 3 * rows);
    if (ReadsDrift(resolved)) bytes += 8 * 2 * cols * cols;
    if (ReadsResidual(resolved)) bytes += 8 * weights;
  }
  if (resolved.method == Method::kGptq) bytes += GptqBytes(resolved, rows, cols);
  estimate.peak_bytes = bytes;

  const bool searches = has_statistic && IsDataAware(resolved.transform) &&
                        resolved.solver == Solver::kMarginal && !resolved.damping.has_value();
  const double w = static_cast<double>(weights);
  const int candidates = searches ? static_cast<int>(std::size(kDampingCandidates)) : 1;
  const int solutions = candidates + 2;  // and the baselines
  double flops = solutions * w * (4.0 * static_cast<double>(block) + 200.0);
  if (has_statistic) {
    flops += solutions * 2.0 * w * kTypicalSampleRows;  // outputs of the sample
    flops += 4 * 2.0 * w * static_cast<double>(cols);   // errors against the full moment
    flops += MethodFlops(resolved.method, static_cast<double>(rows), static_cast<double>(cols));
    if (resolved.solver == Solver::kConditional) {
      flops +=
          static_cast<double>(cols) * static_cast<double>(cols) * static_cast<double>(cols) / 3;
    }
  }
  if (IsDataAware(resolved.transform)) {
    const double b = static_cast<double>(block);
    flops += candidates * static_cast<double>(cols) / b * 300.0 * b * b * b;
  }
  estimate.device_seconds = flops / flops_per_second;
  return estimate;
}

}  // namespace quantd::compute
