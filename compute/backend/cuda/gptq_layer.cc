#include "compute/backend/cuda/gptq_layer.h"

#include <algorithm>
#include <utility>

#include "compute/backend/cuda/block_product_kernels.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/gptq_moment.h"
#include "compute/backend/cuda/round_to_nearest.h"
#include "compute/backend/cuda/rounding_kernels.h"

namespace quantd::compute {
namespace {

constexpr int64_t kPanel = 256;  // positions of a wide unit whose errors are multiplied at once

absl::StatusOr<DeviceBuffer<int>> UploadInts(CudaStream& stream, const std::vector<int>& values) {
  return Upload(stream, absl::MakeConstSpan(values));
}

}  // namespace

absl::StatusOr<DevicePlan> DevicePlan::Upload(CudaStream& stream, const GptqPlan& plan) {
  std::vector<int> inner;
  std::vector<int> begins;
  std::vector<int> firsts;
  for (const GptqUnit& unit : plan.units) {
    for (const int64_t offset : unit.inner) inner.push_back(static_cast<int>(offset));
    begins.push_back(static_cast<int>(unit.begin));
    firsts.push_back(static_cast<int>(unit.first));
  }
  DevicePlan device;
  const std::pair<DeviceBuffer<int>*, std::vector<int>> lists[] = {
      {&device.arranged, {plan.arranged.begin(), plan.arranged.end()}},
      {&device.inner, std::move(inner)},
      {&device.begins, std::move(begins)},
      {&device.firsts, std::move(firsts)}};
  for (const auto& [to, values] : lists) {
    absl::StatusOr<DeviceBuffer<int>> uploaded = UploadInts(stream, values);
    if (!uploaded.ok()) return uploaded.status();
    *to = *std::move(uploaded);
  }
  return device;
}

absl::StatusOr<RoundedLayer> RoundedLayer::Allocate(CudaStream& stream, const FormatSpec& format,
                                                    int64_t rows, int64_t cols, bool identity) {
  RoundedLayer layer;
  layer.rows = rows;
  layer.cols = cols;
  auto updated = DeviceBuffer<double>::Allocate(stream, rows * cols);
  if (!updated.ok()) return updated.status();
  layer.updated = *std::move(updated);
  auto codes = DeviceBuffer<uint8_t>::Allocate(stream, rows * cols);
  if (!codes.ok()) return codes.status();
  layer.codes = *std::move(codes);
  auto scales = DeviceBuffer<double>::Allocate(stream, ScaleCount(format, rows, cols));
  if (!scales.ok()) return scales.status();
  layer.scales = *std::move(scales);
  absl::StatusOr<NewTensor<double>> decoded = NewDoubles(stream, {rows, cols});
  if (!decoded.ok()) return decoded.status();
  layer.decoded = *std::move(decoded);
  layer.dequantized = layer.decoded;
  if (identity) return layer;
  absl::StatusOr<NewTensor<double>> dequantized = NewDoubles(stream, {rows, cols});
  if (!dequantized.ok()) return dequantized.status();
  layer.dequantized = *std::move(dequantized);
  return layer;
}

absl::StatusOr<WideUnitRounder> WideUnitRounder::Create(CudaStream& stream,
                                                        const FormatSpec& format,
                                                        const ScaleDivisor& divisor,
                                                        bool negative_zeros, int64_t rows,
                                                        int64_t widest) {
  WideUnitRounder rounder;
  rounder.format_ = format;
  rounder.divisor_ = divisor;
  rounder.negative_zeros_ = negative_zeros;
  const int64_t size = rows * widest;
  const std::pair<DeviceBuffer<double>*, int64_t> buffers[] = {
      {&rounder.gathered_, size},
      {&rounder.transformed_, size},
      {&rounder.seen_, size},
      {&rounder.feedback_, size},
      {&rounder.errors_, rows * std::min(widest, kPanel)},
      {&rounder.scales_, ScaleCount(format, rows, widest)}};
  for (const auto& [to, count] : buffers) {
    auto buffer = DeviceBuffer<double>::Allocate(stream, count);
    if (!buffer.ok()) return buffer.status();
    *to = *std::move(buffer);
  }
  return rounder;
}

absl::Status WideUnitRounder::Round(CudaStream& stream, const UnitOperands& operands,
                                    const GptqPanel& panel, RoundedLayer& layer) {
  const UnitColumns unit = {.rows = layer.rows,
                            .cols = layer.cols,
                            .width = operands.unit->width,
                            .begin = operands.unit->begin,
                            .first = operands.unit->first,
                            .inner = operands.inner};
  const bool transform = operands.block_size > 0;
  double* const values = transform ? transformed_.data() : gathered_.data();
  absl::Status status =
      ToStatus(LaunchGatherUnit(stream.get(), unit, layer.updated.data(), gathered_.data()),
               "gathering a unit");
  if (status.ok() && transform) {
    status = ToStatus(LaunchApplyBlocks(stream.get(), operands.block_size, operands.tw, unit.rows,
                                        unit.width, gathered_.data(), values),
                      "transforming a unit");
  }
  if (status.ok()) status = SetScales(stream, unit, values, layer);
  if (status.ok()) status = RoundColumns(stream, unit, operands.coupling, values, layer);
  if (status.ok() && transform) {
    status = ToStatus(LaunchApplyTransposedBlocks(stream.get(), operands.block_size, operands.tx,
                                                  unit.rows, unit.width, values, seen_.data()),
                      "transforming a unit back");
  }
  if (!status.ok()) return status;
  const int64_t before = unit.begin - panel.begin;
  const int64_t panel_width = panel.end - panel.begin;
  double* const errors = panel.errors + before;
  status = ToStatus(LaunchKeepUnit(stream.get(), unit,
                                   {.decoded = values,
                                    .seen = transform ? seen_.data() : values,
                                    .target = layer.target,
                                    .decoded_to = layer.decoded.data,
                                    .seen_to = transform ? layer.dequantized.data : nullptr,
                                    .errors = errors,
                                    .errors_ld = panel_width}),
                    "keeping a unit");
  if (!status.ok() || before == 0) return status;
  return MultiplyRows(stream, unit.rows, before, unit.width, errors, panel_width,
                      operands.factor + unit.begin * unit.cols + panel.begin, unit.cols,
                      ProductInto::kAdd, layer.updated.data() + panel.begin, unit.cols);
}

absl::Status WideUnitRounder::SetScales(CudaStream& stream, const UnitColumns& unit,
                                        const double* values, RoundedLayer& layer) {
  absl::Status status = ToStatus(
      divisor_.follows_amax ? LaunchDividedScales(stream.get(), format_, divisor_, unit.rows,
                                                  unit.width, values, scales_.data())
                            : LaunchGroupScales(stream.get(), format_, divisor_.global, unit.rows,
                                                unit.width, values, scales_.data()),
      "scales of a unit");
  if (!status.ok()) return status;
  const size_t width =
      static_cast<size_t>(ScaleCount(format_, format_.grid_rows, unit.width)) * sizeof(double);
  const size_t pitch =
      static_cast<size_t>(ScaleCount(format_, format_.grid_rows, unit.cols)) * sizeof(double);
  const auto height = static_cast<size_t>((unit.rows + format_.grid_rows - 1) / format_.grid_rows);
  return ToStatus(
      cudaMemcpy2DAsync(layer.scales.data() + unit.first / format_.grid_cols, pitch, scales_.data(),
                        width, width, height, cudaMemcpyDeviceToDevice, stream.get()),
      "keeping scales");
}

absl::Status WideUnitRounder::RoundColumns(CudaStream& stream, const UnitColumns& unit,
                                           const double* coupling, double* values,
                                           RoundedLayer& layer) {
  const int64_t n = unit.width;
  absl::Status status =
      ToStatus(cudaMemsetAsync(feedback_.data(), 0,
                               static_cast<size_t>(unit.rows * n) * sizeof(double), stream.get()),
               "clearing feedback");
  for (int64_t panel_end = n; panel_end > 0 && status.ok();) {
    const int64_t panel = std::max<int64_t>(panel_end - kPanel, 0);
    const int64_t errors_ld = panel_end - panel;
    for (int64_t end = panel_end; end > panel && status.ok();) {
      const int64_t begin = std::max(end - kRoundedColumns, panel);
      double* const errors = errors_.data() + (begin - panel);
      status = ToStatus(LaunchRoundChunk(stream.get(), {.unit = unit,
                                                        .begin = begin,
                                                        .end = end,
                                                        .values = values,
                                                        .feedback = feedback_.data(),
                                                        .coupling = coupling,
                                                        .format = format_,
                                                        .negative_zeros = negative_zeros_,
                                                        .scales = layer.scales.data(),
                                                        .codes = layer.codes.data(),
                                                        .decoded = values,
                                                        .errors = errors,
                                                        .errors_ld = errors_ld}),
                        "rounding columns");
      if (status.ok() && begin > panel) {
        status = MultiplyRows(stream, unit.rows, begin - panel, end - begin, errors, errors_ld,
                              coupling + begin * n + panel, n, ProductInto::kAdd,
                              feedback_.data() + panel, n);
      }
      end = begin;
    }
    if (status.ok()) status = stream.CheckCancelled();
    if (status.ok() && panel > 0) {
      status = MultiplyRows(stream, unit.rows, panel, errors_ld, errors_.data(), errors_ld,
                            coupling + panel * n, n, ProductInto::kAdd, feedback_.data(), n);
    }
    panel_end = panel;
  }
  return status;
}

absl::StatusOr<PackedLayer> PackLayer(CudaStream& stream, const NumberFormat& format, double global,
                                      const RoundedLayer& layer) {
  absl::StatusOr<NewCodes> packed = NewDeviceCodes(stream, format, layer.rows, layer.cols);
  if (!packed.ok()) return packed.status();
  absl::Status status =
      ToStatus(LaunchPackCodes(stream.get(), layer.rows, layer.cols, format.element_bits(),
                               layer.codes.data(), packed->codes.data),
               "packing codes");
  if (!status.ok()) return status;
  const FormatSpec spec = format.spec();
  status = ToStatus(
      LaunchStoreScales(stream.get(), spec, global, ScaleCount(spec, layer.rows, layer.cols),
                        layer.scales.data(), packed->scales.data),
      "packing scales");
  if (!status.ok()) return status;
  return PackedLayer{std::move(packed->codes.tensor), std::move(packed->scales.tensor)};
}

}  // namespace quantd::compute
