#include "compute/pipeline/pipeline.h"

#include <bit>
#include <chrono>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/pipeline/layer_inputs.h"
#include "compute/pipeline/pack.h"
#include "compute/stages/measure.h"
#include "compute/stages/method.h"

namespace quantd::compute {
namespace {

// Tells the caller about stages and keeps their times.
class StageClock {
 public:
  explicit StageClock(const std::function<void(const PipelineProgress&)>& progress)
      : progress_(progress) {}

  // A stage may come back (a search alternates between two): times add up, progress never falls.
  void Enter(absl::string_view stage) {
    Stop();
    stage_ = std::string(stage);
    started_ = Clock::now();
    Tell(stage, Start(stage));
  }
  void Tell(absl::string_view stage, double fraction) {
    fraction_ = std::max(fraction_, fraction);
    if (progress_) progress_({.stage = stage, .fraction = fraction_});
  }
  std::map<std::string, double> Finish() {
    Stop();
    stage_.clear();
    double total = 0.0;
    for (const auto& [stage, seconds] : seconds_) total += seconds;
    std::map<std::string, double> all = seconds_;
    all["total"] = total;
    return all;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static double Start(absl::string_view stage) {
    if (stage == "transform" || stage == "factor") return 0.05;
    if (stage == "quantize" || stage == "search") return 0.1;
    if (stage == "rescale") return 0.4;
    if (stage == "pack") return 0.6;
    if (stage == "report") return 0.65;
    return 0.0;
  }
  void Stop() {
    if (stage_.empty()) return;
    seconds_[stage_] += std::chrono::duration<double>(Clock::now() - started_).count();
  }

  const std::function<void(const PipelineProgress&)>& progress_;
  std::string stage_;
  Clock::time_point started_;
  double fraction_ = 0.0;
  std::map<std::string, double> seconds_;
};

// A layer's place in its group.
struct Part {
  int64_t first = 0;
  int64_t rows = 0;
  Reference reference;
};

// One group on its way through the pipeline.
class GroupRun {
 public:
  GroupRun(Backend& backend, Stream& stream, const Recipe& recipe,
           absl::Span<const LayerInput> layers, const Calibration& calibration,
           const std::function<void(const PipelineProgress&)>& progress)
      : backend_(backend),
        stream_(stream),
        layers_(layers),
        calibration_(calibration),
        statistic_(calibration.second_moment),
        clock_(progress),
        format_(NumberFormat::Create(recipe, layers[0].weight->dim(1))) {
    problem_.recipe = recipe;
  }

  absl::StatusOr<std::vector<LayerResult>> Run(const QuantizationMethod& method) {
    clock_.Enter("upload");
    if (absl::Status status = Upload(); !status.ok()) return status;
    absl::StatusOr<LayerSolution> solution = method.Solve(
        backend_, stream_, problem_, [this](absl::string_view stage) { clock_.Enter(stage); });
    if (!solution.ok()) return solution.status();
    clock_.Enter("pack");
    if (absl::Status status = Pack(*solution); !status.ok()) return status;
    clock_.Enter("report");
    if (absl::Status status = Report(*solution); !status.ok()) return status;
    if (absl::Status status = stream_.Synchronize(); !status.ok()) return status;
    Conclude();
    clock_.Tell("report", 1.0);
    return std::move(results_);
  }

 private:
  absl::Status Upload() {
    absl::StatusOr<DeviceTensor> weight = UploadStacked(backend_, stream_, layers_);
    if (!weight.ok()) return weight.status();
    problem_.weight = *std::move(weight);
    for (const LayerInput& layer : layers_) problem_.layer_rows.push_back(layer.weight->dim(0));
    absl::StatusOr<CalibrationOnDevice> calibration =
        UploadCalibration(backend_, stream_, problem_.recipe, calibration_);
    if (!calibration.ok()) return calibration.status();
    problem_.second_moment_hat = std::move(calibration->second_moment_hat);
    problem_.cross_moment = std::move(calibration->cross_moment);
    problem_.residual_moment = std::move(calibration->residual_moment);
    problem_.block_moment = std::move(calibration->block_moment);
    problem_.full_moment = std::move(calibration->full_moment);
    problem_.sample = std::move(calibration->sample);
    moment_ = std::move(calibration->moment);
    if (problem_.sample.empty()) return absl::OkStatus();
    absl::StatusOr<DeviceTensor> outputs =
        backend_.ComputeOutputs(stream_, problem_.weight, problem_.sample);
    if (!outputs.ok()) return outputs.status();
    problem_.outputs = *std::move(outputs);
    return absl::OkStatus();
  }

  absl::Status Pack(const LayerSolution& solution) {
    SharedTensors shared;
    if (!solution.transform.transform.identity) {
      absl::StatusOr<Tensor> tx = backend_.Download(stream_, solution.transform.transform.tx);
      if (!tx.ok()) return tx.status();
      shared.input_transform = *std::move(tx);
    }
    if (problem_.recipe.format == Format::kNvfp4 && statistic_ != nullptr) {
      shared.input_global_scale =
          InputGlobalScale(*format_, statistic_->sample(), shared.input_transform);
    }
    int64_t first = 0;
    for (const LayerInput& layer : layers_) {
      const int64_t rows = layer.weight->dim(0);
      absl::StatusOr<std::vector<NamedTensor>> tensors =
          PackLayer(*solution.encoded, first, rows, problem_.weight.dim(1), shared);
      if (!tensors.ok()) return tensors.status();
      results_.push_back({.name = layer.name, .tensors = *std::move(tensors), .report = {}});
      parts_.push_back({.first = first, .rows = rows, .reference = {}});
      first += rows;
    }
    return absl::OkStatus();
  }

  absl::Status Report(const LayerSolution& solution) {
    for (size_t i = 0; i < parts_.size(); ++i) {
      Describe(solution, results_[i]);
      absl::StatusOr<DeviceTensor> weight = Slice(problem_.weight, parts_[i]);
      if (!weight.ok()) return weight.status();
      absl::StatusOr<Reference> reference =
          PrepareReference(backend_, stream_, *std::move(weight), problem_, moment_);
      if (!reference.ok()) return reference.status();
      parts_[i].reference = *std::move(reference);
      absl::StatusOr<Candidate> own = SliceCandidate(
          solution.transform.transform, solution.dequantized, solution.decoded, parts_[i]);
      if (!own.ok()) return own.status();
      absl::Status status =
          MeasureErrors(backend_, stream_, format_.get(), parts_[i].reference, *own,
                        problem_.recipe.transform_block_size, results_[i].report);
      if (!status.ok()) return status;
    }
    absl::Status status = ReportTheory(solution);
    if (!status.ok()) return status;
    clock_.Tell("report", 0.8);
    status = ReportBaseline(TransformKind::kIdentity, &ErrorReport::baseline_identity_rtn);
    if (!status.ok()) return status;
    clock_.Tell("report", 0.9);
    return ReportBaseline(TransformKind::kHadamard, &ErrorReport::baseline_hadamard_rtn);
  }

  // Rates against their limits; what RTN has no part in.
  absl::Status ReportTheory(const LayerSolution& solution) {
    const Method method = problem_.recipe.method;
    if (method != Method::kGptq && method != Method::kWaterSic) return absl::OkStatus();
    for (size_t i = 0; i < solution.entropy_bits.size(); ++i) {
      results_[i].report.requested_rate_bits = problem_.recipe.rate_bits;
      results_[i].report.entropy_bits = solution.entropy_bits[i];
    }
    if (problem_.full_moment.empty() || problem_.recipe.skip_rate_theory) return absl::OkStatus();
    absl::StatusOr<MomentSpectrum> spectrum =
        MeasureSpectrum(backend_, stream_, problem_.full_moment, solution.damping);
    if (!spectrum.ok()) return spectrum.status();
    for (size_t i = 0; i < parts_.size(); ++i) {
      CompareWithTheory(*spectrum, parts_[i].reference, results_[i].report);
    }
    return absl::OkStatus();
  }

  // Figures that need no measuring.
  void Describe(const LayerSolution& solution, LayerResult& result) const {
    ErrorReport& report = result.report;
    const Tensor& shape = Find(result, "weight_shape");
    report.layer = result.name;
    report.rows = shape.as<int64_t>()[0];
    report.cols = shape.as<int64_t>()[1];
    report.recipe_json = ToJson(problem_.recipe);
    report.outcome = solution.outcome;
    report.damping = solution.damping;
    report.retries = solution.retries;
    report.dropped_inputs = solution.dropped_inputs;
    report.transform_condition_max = solution.transform.condition_max;
    report.device = backend_.Describe().name;
    report.version = QUANTD_VERSION;
    if (statistic_ != nullptr) {
      report.tokens = statistic_->tokens();
      report.sample_rows = statistic_->sample().size();
      report.statistic_digest = statistic_->DigestHex();
      report.dead_inputs = statistic_->DeadInputs();
    }
    for (const auto& [name, moment] :
         {std::pair("second_moment_hat", calibration_.second_moment_hat),
          std::pair("cross_moment", calibration_.cross_moment),
          std::pair("residual_moment", calibration_.residual_moment)}) {
      if (moment != nullptr) report.drift_digests[name] = moment->DigestHex();
    }
    AccountTensors(result.tensors, report);
  }

  static const Tensor& Find(const LayerResult& result, absl::string_view name) {
    size_t i = 0;
    while (result.tensors[i].name != name) ++i;
    return result.tensors[i].tensor;
  }

  absl::StatusOr<DeviceTensor> Slice(const DeviceTensor& matrix, const Part& part) {
    return backend_.SliceRows(stream_, matrix, part.first, part.rows);
  }

  absl::StatusOr<Candidate> SliceCandidate(const BlockTransform& transform,
                                           const DeviceTensor& dequantized,
                                           const DeviceTensor& decoded, const Part& part) {
    Candidate candidate = {.transform = transform, .dequantized = {}, .decoded = {}};
    absl::StatusOr<DeviceTensor> rows = Slice(dequantized, part);
    if (!rows.ok()) return rows.status();
    candidate.dequantized = *std::move(rows);
    if (decoded.empty()) return candidate;
    rows = Slice(decoded, part);
    if (!rows.ok()) return rows.status();
    candidate.decoded = *std::move(rows);
    return candidate;
  }

  // RTN in the same format with a data-free transform, figures and gains.
  absl::Status ReportBaseline(TransformKind kind, ErrorReport::Baseline ErrorReport::*baseline) {
    if (format_ == nullptr) return absl::OkStatus();  // there is no RTN of the same format
    if (problem_.sample.empty() && moment_.empty()) return absl::OkStatus();
    const int64_t size = problem_.recipe.transform_block_size;
    if (kind == TransformKind::kHadamard &&
        (!std::has_single_bit(static_cast<uint64_t>(size)) || problem_.weight.dim(1) % size != 0)) {
      return absl::OkStatus();  // there is no such baseline
    }
    absl::StatusOr<TransformSolution> transform = backend_.SolveTransforms(
        stream_,
        {.kind = kind, .block_size = size, .weight = problem_.weight, .second_moment = {}});
    if (!transform.ok()) return transform.status();
    absl::StatusOr<QuantizedWeight> quantized =
        backend_.RoundToNearest(stream_, *format_, transform->transform, problem_.weight);
    if (!quantized.ok()) return quantized.status();
    for (size_t i = 0; i < parts_.size(); ++i) {
      absl::StatusOr<Candidate> candidate = SliceCandidate(
          transform->transform, quantized->dequantized, quantized->decoded, parts_[i]);
      if (!candidate.ok()) return candidate.status();
      absl::StatusOr<ErrorReport::Baseline> measured =
          MeasureBaseline(backend_, stream_, *format_, parts_[i].reference, *candidate);
      if (!measured.ok()) return measured.status();
      ErrorReport& report = results_[i].report;
      measured->gain_weight_only = Gain(measured->relative_output_error_weight_only,
                                        report.relative_output_error_weight_only);
      measured->gain_weight_and_activation =
          Gain(measured->relative_output_error_weight_and_activation,
               report.relative_output_error_weight_and_activation);
      report.*baseline = *measured;
    }
    return absl::OkStatus();
  }

  static std::optional<double> Gain(std::optional<double> baseline, std::optional<double> own) {
    if (!baseline.has_value() || !own.has_value() || !(*own > 0.0)) return std::nullopt;
    return *baseline / *own;
  }

  void Conclude() {
    const std::map<std::string, double> seconds = clock_.Finish();
    for (LayerResult& result : results_) {
      result.report.seconds = seconds;
      result.report.peak_bytes = stream_.peak_bytes();
    }
  }

  Backend& backend_;
  Stream& stream_;
  const absl::Span<const LayerInput> layers_;
  const Calibration calibration_;
  const SecondMoment* const statistic_;  // calibration_.second_moment
  StageClock clock_;
  const std::unique_ptr<const NumberFormat> format_;
  LayerProblem problem_;
  DeviceTensor moment_;  // of the whole statistic
  std::vector<Part> parts_;
  std::vector<LayerResult> results_;
};

}  // namespace

absl::Status CheckRunnable(const Backend& backend, const Recipe& resolved) {
  if (absl::Status status = FindMethod(resolved.method).status(); !status.ok()) return status;
  return backend.Supports(resolved);
}

absl::StatusOr<std::vector<LayerResult>> QuantizeLayers(
    Backend& backend, const Recipe& resolved, absl::Span<const LayerInput> layers,
    const Calibration& calibration, const CancelFlag* cancel,
    const std::function<void(const PipelineProgress&)>& progress) {
  if (absl::Status status = CheckInputs(resolved, layers, calibration); !status.ok()) return status;
  absl::StatusOr<const QuantizationMethod*> method = FindMethod(resolved.method);
  if (!method.ok()) return method.status();
  if (absl::Status status = backend.Supports(resolved); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Stream>> stream = backend.NewStream(cancel);
  if (!stream.ok()) return stream.status();
  if (absl::Status status = (*stream)->CheckCancelled(); !status.ok()) return status;
  absl::StatusOr<std::vector<LayerResult>> results =
      GroupRun(backend, **stream, resolved, layers, calibration, progress).Run(**method);
  if (results.ok()) return results;
  return absl::Status(results.status().code(),
                      absl::StrCat("layer '", layers[0].name, "': ", results.status().message()));
}

}  // namespace quantd::compute
