#include "compute/stages/measure.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "compute/stages/live_inputs.h"
#include "compute/stages/rate_theory.h"

namespace quantd::compute {
namespace {

constexpr size_t kWorst = 8;

double Sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// Unset where there is nothing to be relative to.
std::optional<double> Relative(double error, double energy) {
  if (!(energy > 0.0)) return std::nullopt;
  return std::max(error, 0.0) / energy;
}

// Unset for an error of 0, whose decibels are infinite.
std::optional<double> Decibels(std::optional<double> relative_error) {
  if (!relative_error.has_value() || !(*relative_error > 0.0)) return std::nullopt;
  return -10.0 * std::log10(*relative_error);
}

std::vector<ErrorReport::Worst> LargestShares(const std::vector<double>& parts) {
  const double total = Sum(parts);
  if (!(total > 0.0)) return {};
  std::vector<ErrorReport::Worst> worst;
  for (size_t i = 0; i < parts.size(); ++i) {
    worst.push_back({.index = static_cast<int64_t>(i), .share = parts[i] / total});
  }
  const size_t keep = std::min(kWorst, worst.size());
  std::partial_sort(worst.begin(), worst.begin() + static_cast<int64_t>(keep), worst.end(),
                    [](const auto& a, const auto& b) {
                      return a.share != b.share ? a.share > b.share : a.index < b.index;
                    });
  worst.resize(keep);
  return worst;
}

std::vector<double> SumByBlock(const std::vector<double>& by_column, int64_t block_size) {
  const auto cols = static_cast<int64_t>(by_column.size());
  std::vector<double> blocks((cols + block_size - 1) / block_size);
  for (int64_t c = 0; c < cols; ++c) blocks[c / block_size] += by_column[c];
  return blocks;
}

absl::StatusOr<std::optional<double>> RelativeOutputError(Backend& backend, Stream& stream,
                                                          const NumberFormat& format,
                                                          const Reference& reference,
                                                          const Candidate& candidate) {
  if (reference.sample.empty()) return std::nullopt;
  absl::StatusOr<OutputError> error = backend.MeasureOutputError(
      stream, format, candidate.transform, candidate.decoded, reference.sample, reference.outputs);
  if (!error.ok()) return error.status();
  return Relative(error->error, error->energy);
}

absl::Status PredictLoss(Backend& backend, Stream& stream, const NumberFormat& format,
                         const Reference& reference, const Candidate& candidate,
                         ErrorReport& report) {
  const std::optional<int> mantissa_bits = format.element_mantissa_bits();
  if (!mantissa_bits.has_value() || reference.block_moment.empty()) return absl::OkStatus();
  absl::StatusOr<double> spread =
      backend.MeasureSpread(stream, candidate.transform, reference.weight, reference.block_moment);
  if (!spread.ok()) return spread.status();
  // Weights and activations are rounded in the same format.
  const double eta = 2.0 * ExpectedSquaredEta(*mantissa_bits, format.scale_mantissa_bits());
  const auto rows = static_cast<double>(reference.weight.dim(0));
  report.predicted_loss = Relative(eta * *spread * rows, reference.output_energy);
  return absl::OkStatus();
}

}  // namespace

double ExpectedSquaredEta(int element_mantissa_bits, int scale_mantissa_bits) {
  const auto variance = [](int bits) {
    const double step = std::numbers::ln2 * std::exp2(-bits);
    return step * step / 12.0;
  };
  return (1.0 + variance(element_mantissa_bits)) * (1.0 + variance(scale_mantissa_bits)) - 1.0;
}

absl::StatusOr<MomentSpectrum> MeasureSpectrum(Backend& backend, Stream& stream,
                                               const DeviceTensor& moment, double damping) {
  absl::StatusOr<std::vector<double>> eigenvalues = backend.Eigenvalues(stream, moment);
  if (!eigenvalues.ok()) return eigenvalues.status();
  absl::StatusOr<std::vector<double>> diagonal = backend.Diagonal(stream, moment);
  if (!diagonal.ok()) return diagonal.status();
  MomentSpectrum spectrum = {.eigenvalues = *std::move(eigenvalues), .cholesky_am_gm = {}};
  const LiveInputs inputs = FindLiveInputs(*diagonal);
  if (inputs.live.empty()) return spectrum;
  absl::StatusOr<DeviceTensor> live =
      inputs.dead.empty() ? moment : backend.Submatrix(stream, moment, inputs.live, inputs.live);
  if (!live.ok()) return live.status();
  double mean = 0.0;
  for (const int64_t i : inputs.live) {
    mean += (*diagonal)[i] / static_cast<double>(inputs.live.size());
  }
  const absl::StatusOr<MomentFactor> factor = backend.FactorMoment(stream, *live, damping * mean);
  if (absl::IsFailedPrecondition(factor.status())) return spectrum;
  if (!factor.ok()) return factor.status();
  std::vector<double> squares;
  for (const double l : factor->diagonal) squares.push_back(l * l);
  spectrum.cholesky_am_gm = ArithmeticOverGeometricMean(squares);
  return spectrum;
}

void CompareWithTheory(const MomentSpectrum& spectrum, const Reference& reference,
                       ErrorReport& report) {
  report.cholesky_am_gm = spectrum.cholesky_am_gm;
  if (spectrum.cholesky_am_gm.has_value()) {
    report.gptq_predicted_gap_bits = 0.5 * std::log2(*spectrum.cholesky_am_gm);
  }
  const std::optional<double> error = report.relative_output_error_weight_only;
  if (!error.has_value() || !(*error > 0.0)) return;
  const auto weights = static_cast<double>(report.rows * report.cols);
  report.waterfilling_limit_bits =
      WaterfillingRate(reference.weight_energy / weights, spectrum.eigenvalues,
                       *error * reference.output_energy / weights);
  report.waterfilling_gap_bits = report.bits_per_weight - *report.waterfilling_limit_bits;
}

absl::StatusOr<Reference> PrepareReference(Backend& backend, Stream& stream, DeviceTensor weight,
                                           const LayerProblem& problem, DeviceTensor moment) {
  Reference reference;
  reference.weight = std::move(weight);
  reference.moment = std::move(moment);
  reference.block_moment = problem.block_moment;
  reference.sample = problem.sample;
  reference.moment_hat = problem.second_moment_hat;
  reference.cross = problem.cross_moment;
  if (!reference.sample.empty()) {
    // The outputs of a layer that was solved alone are there already.
    if (reference.weight.dim(0) == problem.weight.dim(0)) {
      reference.outputs = problem.outputs;
    } else {
      absl::StatusOr<DeviceTensor> outputs =
          backend.ComputeOutputs(stream, reference.weight, reference.sample);
      if (!outputs.ok()) return outputs.status();
      reference.outputs = *std::move(outputs);
    }
  }
  absl::StatusOr<WeightError> energy = backend.MeasureWeightError(
      stream, reference.weight, DeviceTensor(), reference.moment, ErrorDetail::kRows);
  if (!energy.ok()) return energy.status();
  reference.weight_energy = energy->sum_squares;
  reference.output_energy = Sum(energy->by_row);
  return reference;
}

absl::StatusOr<ErrorReport::Baseline> MeasureBaseline(Backend& backend, Stream& stream,
                                                      const NumberFormat& format,
                                                      const Reference& reference,
                                                      const Candidate& candidate) {
  ErrorReport::Baseline baseline;
  if (!reference.moment.empty()) {
    absl::StatusOr<WeightError> error = backend.MeasureWeightError(
        stream, reference.weight, candidate.dequantized, reference.moment, ErrorDetail::kRows);
    if (!error.ok()) return error.status();
    baseline.relative_output_error_weight_only =
        Relative(Sum(error->by_row), reference.output_energy);
  }
  absl::StatusOr<std::optional<double>> error =
      RelativeOutputError(backend, stream, format, reference, candidate);
  if (!error.ok()) return error.status();
  baseline.relative_output_error_weight_and_activation = *error;
  return baseline;
}

absl::Status MeasureErrors(Backend& backend, Stream& stream, const NumberFormat* format,
                           const Reference& reference, const Candidate& candidate,
                           int64_t block_size, ErrorReport& report) {
  absl::StatusOr<WeightError> weight =
      backend.MeasureWeightError(stream, reference.weight, candidate.dequantized, reference.moment,
                                 ErrorDetail::kRowsAndColumns);
  if (!weight.ok()) return weight.status();
  report.max_abs_weight_error = weight->max_abs;
  report.relative_weight_error =
      Relative(weight->sum_squares, reference.weight_energy).value_or(0.0);
  if (!reference.moment.empty()) {
    report.weight_only_measured_on =
        reference.moment.shape().size() == 2 ? "full_second_moment" : "block_diagonal";
    report.relative_output_error_weight_only =
        Relative(Sum(weight->by_row), reference.output_energy);
    report.sqnr_db_weight_only = Decibels(report.relative_output_error_weight_only);
    report.worst_rows = LargestShares(weight->by_row);
    report.worst_blocks = LargestShares(SumByBlock(weight->by_column, block_size));
  }
  if (!reference.cross.empty() && !reference.moment_hat.empty() &&
      reference.moment.shape().size() == 2) {
    absl::StatusOr<OutputError> drift =
        backend.MeasureDriftError(stream, reference.weight, candidate.dequantized, reference.moment,
                                  reference.moment_hat, reference.cross);
    if (!drift.ok()) return drift.status();
    report.relative_drift_error = Relative(drift->error, drift->energy);
  }
  if (format == nullptr) return absl::OkStatus();
  absl::StatusOr<std::optional<double>> output =
      RelativeOutputError(backend, stream, *format, reference, candidate);
  if (!output.ok()) return output.status();
  report.relative_output_error_weight_and_activation = *output;
  report.sqnr_db_weight_and_activation = Decibels(*output);
  return PredictLoss(backend, stream, *format, reference, candidate, report);
}

}  // namespace quantd::compute
