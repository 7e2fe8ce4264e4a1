#include "compute/pipeline/layer_inputs.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace quantd::compute {
namespace {

template <typename... Parts>
absl::Status Bad(const LayerInput& layer, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("layer '", layer.name, "': ", parts...));
}

absl::Status CheckWeight(const LayerInput& layer) {
  if (layer.weight == nullptr) return Bad(layer, "weight: missing");
  const Tensor& weight = *layer.weight;
  if (!IsFloat(weight.dtype())) {
    return Bad(layer, "weight: expected F64, F32, F16 or BF16; got ", NameOf(weight.dtype()));
  }
  if (weight.shape().size() != 2) {
    return Bad(layer, "weight: expected a matrix; got shape [", absl::StrJoin(weight.shape(), ", "),
               "]");
  }
  const int64_t bad = FindNonFinite(weight.dtype(), weight.bytes().data(), weight.elements());
  if (bad >= 0) {
    return Bad(layer, "weight: expected finite values; got NaN or Inf in row ", bad / weight.dim(1),
               ", column ", bad % weight.dim(1));
  }
  if (weight.dtype() != DType::kF64) return absl::OkStatus();
  const absl::Span<const double> values = weight.as<double>();
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::abs(values[i]) > std::numeric_limits<float>::max()) {
      return Bad(layer, "weight: expected magnitudes that float32 can hold; got ", values[i],
                 " in row ", static_cast<int64_t>(i) / weight.dim(1), ", column ",
                 static_cast<int64_t>(i) % weight.dim(1));
    }
  }
  return absl::OkStatus();
}

// `kind`: kSecondMoment stands for kWeighted, too.
absl::Status CheckMoment(const LayerInput& layer, absl::string_view name, MomentKind kind,
                         const SecondMoment* moment) {
  if (moment == nullptr) return absl::OkStatus();
  const MomentSpec& spec = moment->spec();
  const bool weighted = kind == MomentKind::kSecondMoment && spec.kind == MomentKind::kWeighted;
  if (spec.kind != kind && !weighted) {
    return Bad(layer, name, ": expected a ", NameOf(kind), "; got a ", NameOf(spec.kind));
  }
  if (spec.cols != layer.weight->dim(1)) {
    return Bad(layer, name, ": expected ", layer.weight->dim(1), " columns; got ", spec.cols);
  }
  if (kind == MomentKind::kResidual && spec.rows() != layer.weight->dim(0)) {
    return Bad(layer, name, ": expected ", layer.weight->dim(0), " rows, as the weight has; got ",
               spec.rows());
  }
  const absl::Status usable = moment->CheckUsable();
  if (usable.ok()) return usable;
  return absl::FailedPreconditionError(
      absl::StrCat("layer '", layer.name, "': ", name, ": ", usable.message()));
}

absl::Status CheckDrift(absl::Span<const LayerInput> layers, const Calibration& calibration) {
  const LayerInput& layer = layers[0];
  const SecondMoment* hat = calibration.second_moment_hat;
  const SecondMoment* cross = calibration.cross_moment;
  if ((hat == nullptr) != (cross == nullptr)) {
    return Bad(layer, hat == nullptr ? "second_moment_hat" : "cross_moment",
               ": expected both moments of drift or none; got the other alone");
  }
  const SecondMoment* residual = calibration.residual_moment;
  if (residual != nullptr && layers.size() > 1) {
    return Bad(layer, "residual_moment: expected none in a fusion group; got one for ",
               layers.size(), " layers");
  }
  absl::Status status = CheckMoment(layer, "second_moment_hat", MomentKind::kSecondMoment, hat);
  if (status.ok()) status = CheckMoment(layer, "cross_moment", MomentKind::kCross, cross);
  if (status.ok()) status = CheckMoment(layer, "residual_moment", MomentKind::kResidual, residual);
  if (!status.ok()) return status;
  if (hat != nullptr && hat->spec().layout != MomentLayout::kFull) {
    return Bad(layer, "second_moment_hat: expected a full second moment; got a block-diagonal one");
  }
  return absl::OkStatus();
}

absl::Status CheckStatistic(const Recipe& resolved, const LayerInput& layer,
                            const SecondMoment* statistic) {
  const auto missing = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat("layer '", layer.name,
                                                      "': ", NameOf(resolved.transform), " with ",
                                                      NameOf(resolved.method), " needs ", what));
  };
  if (statistic == nullptr) {
    return NeedsSecondMoment(resolved) ? missing("a second moment") : absl::OkStatus();
  }
  if (statistic->tokens() == 0) return missing("a second moment with at least one token");
  absl::Status status = CheckMoment(layer, "second_moment", MomentKind::kSecondMoment, statistic);
  if (!status.ok()) return status;
  const MomentSpec& spec = statistic->spec();
  if (spec.layout == MomentLayout::kFull) return absl::OkStatus();
  if (NeedsFullSecondMoment(resolved)) return missing("a full second moment");
  if (NeedsSecondMoment(resolved) && spec.block_size % resolved.transform_block_size != 0) {
    return Bad(layer, "second_moment: expected blocks of a multiple of transform_block_size ",
               resolved.transform_block_size, "; got ", spec.block_size);
  }
  return absl::OkStatus();
}

// Layers that share scales across rows could not be split again.
absl::Status CheckFusion(const Recipe& resolved, absl::Span<const LayerInput> layers) {
  const int64_t cols = layers[0].weight->dim(1);
  for (const LayerInput& layer : layers) {
    if (layer.weight->dim(1) != cols) {
      return Bad(layer, "weight: expected ", cols, " columns, as the other layers of its fusion ",
                 "group; got ", layer.weight->dim(1));
    }
    if (layers.size() > 1 && resolved.granularity == Granularity::kBlock128 &&
        layer.weight->dim(0) % 128 != 0) {
      return Bad(layer, "weight: expected a multiple of 128 rows in a fusion group with ",
                 "granularity block-128x128; got ", layer.weight->dim(0));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckInputs(const Recipe& resolved, absl::Span<const LayerInput> layers,
                         const Calibration& calibration) {
  if (layers.empty()) return absl::InvalidArgumentError("layers: expected at least one");
  int64_t rows = 0;
  for (const LayerInput& layer : layers) {
    if (absl::Status status = CheckWeight(layer); !status.ok()) return status;
    rows += layer.weight->dim(0);
    // The rows of the whole group have to fit, too.
    for (const int64_t count : {layer.weight->dim(0), rows}) {
      absl::Status status = CheckGeometry(resolved, count, layer.weight->dim(1));
      if (!status.ok()) return Bad(layer, status.message());
    }
  }
  if (absl::Status status = CheckFusion(resolved, layers); !status.ok()) return status;
  absl::Status status = CheckStatistic(resolved, layers[0], calibration.second_moment);
  if (!status.ok()) return status;
  return CheckDrift(layers, calibration);
}

absl::StatusOr<DeviceTensor> UploadStacked(Backend& backend, Stream& stream,
                                           absl::Span<const LayerInput> layers) {
  if (layers.size() == 1) return backend.Upload(stream, *layers[0].weight);
  int64_t rows = 0;
  for (const LayerInput& layer : layers) rows += layer.weight->dim(0);
  absl::StatusOr<Tensor> stacked = Tensor::Create(DType::kF64, {rows, layers[0].weight->dim(1)});
  if (!stacked.ok()) return stacked.status();
  double* to = stacked->as<double>().data();
  for (const LayerInput& layer : layers) {
    const Tensor& weight = *layer.weight;
    ConvertToDouble(weight.dtype(), weight.bytes().data(), weight.elements(), to);
    to += weight.elements();
  }
  return backend.Upload(stream, *stacked);
}

absl::StatusOr<CalibrationOnDevice> UploadCalibration(Backend& backend, Stream& stream,
                                                      const Recipe& resolved,
                                                      const Calibration& given) {
  CalibrationOnDevice calibration;
  const auto upload = [&](const SecondMoment* moment, DeviceTensor& to) -> absl::Status {
    if (moment == nullptr) return absl::OkStatus();
    absl::StatusOr<DeviceTensor> mean = backend.UploadMean(stream, *moment);
    if (mean.ok()) to = *std::move(mean);
    return mean.status();
  };
  absl::Status status = upload(given.second_moment_hat, calibration.second_moment_hat);
  if (status.ok()) status = upload(given.cross_moment, calibration.cross_moment);
  if (status.ok()) status = upload(given.residual_moment, calibration.residual_moment);
  if (status.ok()) status = upload(given.second_moment, calibration.moment);
  if (!status.ok()) return status;
  if (given.second_moment == nullptr) return calibration;
  const SecondMoment& statistic = *given.second_moment;
  if (statistic.spec().layout == MomentLayout::kFull) {
    calibration.full_moment = calibration.moment;
  }
  // Without a data-aware transform the blocks serve the predicted loss alone and may not fit.
  if (calibration.moment.shape().back() % resolved.transform_block_size == 0) {
    absl::StatusOr<DeviceTensor> blocks =
        backend.DiagonalBlocks(stream, calibration.moment, resolved.transform_block_size);
    if (!blocks.ok()) return blocks.status();
    calibration.block_moment = *std::move(blocks);
  }
  const RowSample& sample = statistic.sample();
  if (sample.size() == 0) return calibration;
  absl::StatusOr<Tensor> rows = Tensor::Create(DType::kF32, {sample.size(), sample.cols()});
  if (!rows.ok()) return rows.status();
  float* to = rows->as<float>().data();
  for (const RowSample::Row& row : sample.rows()) {
    to = std::copy(row.values.begin(), row.values.end(), to);
  }
  absl::StatusOr<DeviceTensor> uploaded = backend.Upload(stream, *rows);
  if (!uploaded.ok()) return uploaded.status();
  calibration.sample = *std::move(uploaded);
  return calibration;
}

}  // namespace quantd::compute
