#include <algorithm>

#include "compute/formats/number_format.h"
#include "compute/pipeline/pipeline.h"

namespace quantd::compute {
namespace {

constexpr int64_t kSampleRows = 4096;  // the most that a statistic retains
constexpr int64_t kTypicalSampleRows = 512;
constexpr double kFlopsPerSecond = 2e10;  // what two cores reach in float64, roughly
constexpr int kDampingCandidates = 7;

bool IsDataAware(TransformKind kind) {
  return kind == TransformKind::kWus || kind == TransformKind::kWush;
}

}  // namespace

LayerEstimate EstimateLayer(const Recipe& resolved, int64_t rows, int64_t cols,
                            bool has_statistic) {
  const auto format = NumberFormat::Create(resolved, cols);
  const ScaleGrid grid = format->grid();
  const int64_t block = resolved.transform_block_size;
  const int64_t weights = rows * cols;
  const int64_t transform = resolved.transform == TransformKind::kIdentity ? 0 : cols * block;

  LayerEstimate estimate;
  estimate.output_bytes = weights * format->element_bits() / 8 +
                          (rows + grid.rows - 1) / grid.rows *
                              ((cols + grid.cols - 1) / grid.cols) *
                              static_cast<int64_t>(SizeOf(format->scale_dtype())) +
                          transform * 4 + 64;

  // The weight; decoded and dequantized values of the best and the current candidate, of a
  // baseline, and one more matrix in the making; transforms, F32 and F64, of as many.
  int64_t bytes = 8 * weights * 8 + cols * block * 12 * 4;
  if (has_statistic) {
    bytes += 8 * cols * cols + 8 * cols * block;
    bytes += 8 * kSampleRows * (2 * cols + 3 * rows);
  }
  estimate.peak_bytes = bytes;

  const bool searches = has_statistic && IsDataAware(resolved.transform) &&
                        resolved.solver == Solver::kMarginal && !resolved.damping.has_value();
  const double w = static_cast<double>(weights);
  const int solutions = (searches ? kDampingCandidates : 1) + 2;  // and the baselines
  double flops = solutions * w * (4.0 * static_cast<double>(block) + 200.0);
  if (has_statistic) {
    flops += solutions * 2.0 * w * kTypicalSampleRows;  // outputs of the sample
    flops += 4 * 2.0 * w * static_cast<double>(cols);   // errors against the full moment
    if (resolved.solver == Solver::kConditional) {
      flops +=
          static_cast<double>(cols) * static_cast<double>(cols) * static_cast<double>(cols) / 3;
    }
  }
  if (IsDataAware(resolved.transform)) {
    const double b = static_cast<double>(block);
    flops +=
        (searches ? kDampingCandidates : 1) * static_cast<double>(cols) / b * 300.0 * b * b * b;
  }
  estimate.device_seconds = flops / kFlopsPerSecond;
  return estimate;
}

}  // namespace quantd::compute
