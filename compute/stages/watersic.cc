#include "compute/stages/watersic.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/coding/entropy.h"
#include "compute/coding/integer_coder.h"
#include "compute/formats/lattice_weight.h"
#include "compute/stages/live_inputs.h"
#include "compute/stages/rate_search.h"
#include "compute/stages/rate_theory.h"

namespace quantd::compute {
namespace {

constexpr double kDampingFactor = 10.0;  // from one attempt to the next
constexpr double kMaxDamping = 0.1;      // relative; what needs more is no second moment
constexpr double kSearchSpan = 40.0;     // bits of nominal rate to either side
constexpr double kGranularBits = 512.0;  // steps in which the size of a tiny layer moves

// Rows that are solved first, to know where the search of a layer of many more rows begins: a
// solution of all rows costs a multiple.
constexpr int64_t kPilotRows = 512;
constexpr int64_t kLeastRowsForPilot = 4 * kPilotRows;
constexpr int kMaxPilotSteps = 3;
constexpr double kPilotMiss = 0.05;  // bits; the slope leads the rest of the way

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// One layer or fusion group on its way.
class Solver {
 public:
  Solver(Backend& backend, Stream& stream, const LayerProblem& problem)
      : backend_(backend),
        stream_(stream),
        problem_(problem),
        rows_(problem.weight.dim(0)),
        cols_(problem.weight.dim(1)),
        layer_rows_(problem.layer_rows.empty() ? std::vector<int64_t>{rows_} : problem.layer_rows) {
  }

  absl::StatusOr<LayerSolution> Run(absl::FunctionRef<void(absl::string_view)> stage) {
    stage("factor");
    absl::Status status = CheckMoments();
    if (status.ok()) status = FindLive();
    if (status.ok()) status = Restrict();
    if (status.ok()) status = Factor();
    if (status.ok()) status = Prepare();
    if (!status.ok()) return status;
    stage("search");
    status = Search();
    if (!status.ok()) return status;
    stage("rescale");
    return Finish();
  }

 private:
  absl::Status CheckMoments() const {
    if (problem_.full_moment.empty()) {
      return absl::FailedPreconditionError("watersic needs a full second moment");
    }
    if (problem_.cross_moment.empty() != problem_.second_moment_hat.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("cross_moment and second_moment_hat: expected both or neither; got only ",
                       problem_.cross_moment.empty() ? "second_moment_hat" : "cross_moment"));
    }
    return absl::OkStatus();
  }

  // Inputs that carry next to nothing cost a scale each and spoil the factorization.
  absl::Status FindLive() {
    absl::StatusOr<std::vector<double>> diagonal = backend_.Diagonal(stream_, problem_.full_moment);
    if (!diagonal.ok()) return diagonal.status();
    for (int64_t c = 0; c < cols_; ++c) {
      if (!((*diagonal)[c] >= 0.0)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "second_moment: expected a diagonal of at least 0; got ", (*diagonal)[c], " at ", c));
      }
    }
    LiveInputs inputs = FindLiveInputs(*diagonal);
    live_ = std::move(inputs.live);
    dead_ = std::move(inputs.dead);
    if (!live_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "second_moment: expected an input with energy; got a diagonal of zeros");
  }

  absl::Status Restrict() {
    const std::vector<int64_t> columns = dead_.empty() ? std::vector<int64_t>() : live_;
    const auto take = [&](const DeviceTensor& from, bool square, DeviceTensor& to) -> absl::Status {
      if (from.empty()) return absl::OkStatus();
      absl::StatusOr<DeviceTensor> part =
          backend_.Submatrix(stream_, from, square ? columns : std::vector<int64_t>(), columns);
      if (!part.ok()) return part.status();
      to = *std::move(part);
      return absl::OkStatus();
    };
    absl::Status status = take(problem_.weight, false, inputs_.weight);
    if (status.ok()) status = take(problem_.full_moment, true, inputs_.moment);
    if (status.ok()) status = take(problem_.second_moment_hat, true, inputs_.moment_hat);
    if (status.ok()) status = take(problem_.cross_moment, true, inputs_.cross);
    if (status.ok()) status = take(problem_.residual_moment, false, inputs_.residual);
    return status;
  }

  const DeviceTensor& MomentHat() const {
    return inputs_.moment_hat.empty() ? inputs_.moment : inputs_.moment_hat;
  }

  absl::Status Factor() {
    absl::StatusOr<std::vector<double>> diagonal = backend_.Diagonal(stream_, MomentHat());
    if (!diagonal.ok()) return diagonal.status();
    const double mean = Mean(*diagonal);
    damping_ = problem_.recipe.damping.value_or(kWaterSicDamping);
    while (true) {
      absl::StatusOr<MomentFactor> factor =
          backend_.FactorMoment(stream_, MomentHat(), damping_ * mean);
      if (factor.ok()) {
        inputs_.factor = *std::move(factor);
        return absl::OkStatus();
      }
      if (!absl::IsFailedPrecondition(factor.status())) return factor.status();
      if (damping_ >= kMaxDamping || !(mean > 0.0)) {
        return absl::InvalidArgumentError(absl::StrCat(
            inputs_.moment_hat.empty() ? "second_moment" : "second_moment_hat",
            ": expected a positive semidefinite matrix; got one that is indefinite even with ",
            damping_, " of its mean diagonal added"));
      }
      damping_ *= kDampingFactor;
      ++retries_;
    }
  }

  absl::Status Prepare() {
    absl::StatusOr<LatticeProblem> lattice = backend_.PrepareLattice(stream_, inputs_);
    if (!lattice.ok()) return lattice.status();
    lattice_ = *std::move(lattice);
    absl::StatusOr<std::vector<double>> energies = backend_.ColumnEnergies(stream_, inputs_.weight);
    if (!energies.ok()) return energies.status();
    // sqrt(E[W_i^2]) L_ii: how far the targets of a column spread.
    spreads_ = *std::move(energies);
    for (size_t i = 0; i < spreads_.size(); ++i) {
      spreads_[i] = std::sqrt(spreads_[i]) * inputs_.factor.diagonal[i];
    }
    double logs = 0.0;
    double count = 0.0;
    for (const double spread : spreads_) {
      if (!(spread > 0.0)) continue;
      logs += std::log(spread);
      count += 1.0;
    }
    unit_spacing_ = count > 0.0 ? std::sqrt(12.0) * std::exp(logs / count) : 1.0;
    return absl::OkStatus();
  }

  double Spacing(double nominal) const { return std::exp2(-nominal) * unit_spacing_; }

  // Bits beside the codes: scales of 16 bits, dead indices, one global a layer.
  double SideBits() const {
    double bits = 0.0;
    for (const int64_t rows : layer_rows_) {
      bits += static_cast<double>(
          LatticeWeight::SideBits(rows, cols_, static_cast<int64_t>(dead_.size())));
    }
    return bits;
  }

  double BitsPerWeight(double code_bits) const {
    return (code_bits + SideBits()) / static_cast<double>(rows_ * cols_);
  }

  // The rate of Gaussian targets, from which the search starts.
  double PredictedRate(double nominal) const {
    const double spacing = Spacing(nominal);
    double bits = 0.0;
    for (const double spread : spreads_) bits += RoundedGaussianEntropy(spread / spacing);
    return BitsPerWeight(bits * static_cast<double>(rows_));
  }

  double PredictedSlope(double nominal) const {
    const double rise = PredictedRate(nominal + 0.1) - PredictedRate(nominal - 0.1);
    return std::max(rise / 0.2, 0.1);
  }

  // The nominal rate at which the request is predicted. A bit more of it gives at most a bit.
  double PredictedNominal() const {
    double low = -kSearchSpan;
    double high = kSearchSpan;
    double nominal = std::min(problem_.recipe.rate_bits, kSearchSpan);
    while (high - low > 1e-3) {
      const double miss = problem_.recipe.rate_bits - PredictedRate(nominal);
      if (std::abs(miss) < 1e-3) break;
      (miss > 0.0 ? low : high) = nominal;
      nominal += miss;
      if (nominal <= low || nominal >= high) nominal = 0.5 * (low + high);
    }
    return nominal;
  }

  absl::Status Search() {
    const double predicted = PredictedNominal();
    const absl::StatusOr<double> start =
        rows_ < kLeastRowsForPilot ? predicted : StartByPilot(predicted);
    if (!start.ok()) return start.status();
    const RateSearch search = {.requested = problem_.recipe.rate_bits,
                               .granularity = kGranularBits / static_cast<double>(rows_ * cols_),
                               .start = *start,
                               .slope = PredictedSlope(*start),
                               .least = -kSearchSpan,
                               .largest = kSearchSpan};
    return SearchRate(
               search, [this](double nominal) { return EstimateRate(nominal); },
               [this] { return MeasureRate(); })
        .status();
  }

  // The target of kPilotRows rows, which stand for all: the quantiles of their energies. What a row
  // costs goes with the logarithm of that.
  absl::StatusOr<DeviceTensor> PilotTarget() {
    const absl::StatusOr<std::vector<double>> energies =
        backend_.RowEnergies(stream_, inputs_.weight);
    if (!energies.ok()) return energies.status();
    std::vector<int64_t> order(rows_);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return (*energies)[a] < (*energies)[b]; });
    std::vector<int64_t> rows(kPilotRows);
    for (int64_t i = 0; i < kPilotRows; ++i) rows[i] = order[(2 * i + 1) * rows_ / kPilotRows / 2];
    return backend_.Submatrix(stream_, lattice_.target, std::vector<int64_t>(), rows);
  }

  // The rate of all rows by those of the pilot.
  absl::StatusOr<double> PilotRate(const DeviceTensor& target, double nominal) {
    const absl::StatusOr<LatticeCodes> codes =
        backend_.CancelSuccessively(stream_, inputs_.factor, target, Spacing(nominal));
    if (!codes.ok()) return codes.status();
    const absl::StatusOr<CodeCounts> counts =
        backend_.CountCodes(stream_, codes->codes, 0, kPilotRows);
    if (!counts.ok()) return counts.status();
    CodingModel model = ChooseModel(*counts);
    const double share = static_cast<double>(rows_) / kPilotRows;
    model.bits = model.fixed_bits + share * (model.bits - model.fixed_bits);
    return BitsPerWeight(EstimateCodedBits(model, rows_ * LiveCols()));
  }

  // Where the search begins, from the prediction on.
  absl::StatusOr<double> StartByPilot(double nominal) {
    const absl::StatusOr<DeviceTensor> target = PilotTarget();
    if (!target.ok()) return target.status();
    for (int step = 0; step < kMaxPilotSteps; ++step) {
      const absl::StatusOr<double> rate = PilotRate(*target, nominal);
      if (absl::IsOutOfRange(rate.status())) break;  // too fine: the search finds out how fine
      if (!rate.ok()) return rate.status();
      const double miss = problem_.recipe.rate_bits - *rate;
      nominal += miss / PredictedSlope(nominal);
      if (std::abs(miss) <= kPilotMiss) break;
    }
    return std::clamp(nominal, -kSearchSpan, kSearchSpan);
  }

  absl::StatusOr<double> EstimateRate(double nominal) {
    spacing_ = Spacing(nominal);
    absl::StatusOr<LatticeCodes> codes =
        backend_.CancelSuccessively(stream_, inputs_.factor, lattice_.target, spacing_);
    if (!codes.ok()) return codes.status();
    codes_ = *std::move(codes);
    counts_.clear();
    models_.clear();
    double bits = 0.0;
    int64_t first = 0;
    for (const int64_t rows : layer_rows_) {
      absl::StatusOr<CodeCounts> counts = backend_.CountCodes(stream_, codes_.codes, first, rows);
      if (!counts.ok()) return counts.status();
      models_.push_back(ChooseModel(*counts));
      bits += EstimateCodedBits(models_.back(), counts->values);
      counts_.push_back(*std::move(counts));
      first += rows;
    }
    return BitsPerWeight(bits);
  }

  absl::StatusOr<double> MeasureRate() {
    coded_.clear();
    double bits = 0.0;
    int64_t first = 0;
    for (size_t i = 0; i < layer_rows_.size(); ++i) {
      absl::StatusOr<CodedIntegers> coded =
          backend_.EncodeCodes(stream_, codes_.codes, first, layer_rows_[i], models_[i]);
      if (!coded.ok()) return coded.status();
      bits += 8.0 * static_cast<double>(coded->bytes());
      coded_.push_back({.rows = layer_rows_[i], .coded = *std::move(coded)});
      first += layer_rows_[i];
    }
    return BitsPerWeight(bits);
  }

  int64_t LiveCols() const { return static_cast<int64_t>(live_.size()); }

  // Of the codes of each layer of the group, in bits a weight. They are decoded again on the way,
  // against the checksum of what was encoded: a layer that cannot be read is not stored.
  absl::StatusOr<std::vector<double>> Entropies() {
    std::vector<double> entropies;
    for (size_t i = 0; i < layer_rows_.size(); ++i) {
      const absl::StatusOr<DeviceTensor> decoded =
          backend_.DecodeCodes(stream_, coded_[i].coded, layer_rows_[i], LiveCols());
      if (absl::IsDataLoss(decoded.status())) {
        return absl::InternalError(
            absl::StrCat("coded weights do not decode: ", decoded.status().message()));
      }
      if (!decoded.ok()) return decoded.status();
      std::optional<double> entropy = EntropyOf(counts_[i]);
      if (!entropy.has_value()) {  // too many codes are too large to be counted apart
        const absl::StatusOr<Tensor> codes = backend_.Download(stream_, *decoded);
        if (!codes.ok()) return codes.status();
        entropy = EmpiricalEntropy(codes->as<int32_t>());
      }
      entropies.push_back(*entropy * static_cast<double>(LiveCols()) / static_cast<double>(cols_));
    }
    return entropies;
  }

  absl::StatusOr<LayerSolution> Finish() {
    std::vector<double> alpha;
    for (const double l : inputs_.factor.diagonal) alpha.push_back(spacing_ / l);
    absl::StatusOr<LatticeScales> scales =
        backend_.FitLatticeScales(stream_, lattice_, codes_, alpha);
    if (!scales.ok()) return scales.status();
    // Row scales make up for part of what rounding the column scales costs.
    absl::StatusOr<std::vector<double>> column = LatticeWeight::AsStored(scales->column);
    if (!column.ok()) return column.status();
    absl::StatusOr<std::vector<double>> row =
        backend_.FitRowScales(stream_, lattice_, codes_.codes, *column);
    if (row.ok()) row = LatticeWeight::AsStored(*row);
    if (!row.ok()) return row.status();

    LayerSolution solution;
    absl::StatusOr<std::vector<double>> entropies = Entropies();
    if (!entropies.ok()) return entropies.status();
    solution.entropy_bits = *std::move(entropies);
    // Products of two float16 numbers and a code are exact in float64: what a reader decodes.
    absl::StatusOr<DeviceTensor> dequantized =
        backend_.DecodeLattice(stream_, codes_.codes, *row, *column,
                               dead_.empty() ? std::vector<int64_t>() : live_, cols_);
    if (!dequantized.ok()) return dequantized.status();
    absl::StatusOr<std::shared_ptr<const LatticeWeight>> encoded =
        LatticeWeight::Create({.rows = rows_,
                               .cols = cols_,
                               .coded = std::move(coded_),
                               .spacing = *std::move(column),
                               .row_scale = *std::move(row),
                               .col_scale = std::vector<double>(live_.size(), 1.0),
                               .dead_columns = dead_});
    if (!encoded.ok()) return encoded.status();
    solution.transform.transform.identity = true;
    solution.transform.transform.block_size = problem_.recipe.transform_block_size;
    solution.dequantized = *std::move(dequantized);
    solution.encoded = *std::move(encoded);
    solution.outcome = retries_ > 0 ? Outcome::kDamped : Outcome::kExact;
    solution.damping = damping_;
    solution.retries = retries_;
    solution.dropped_inputs = static_cast<int64_t>(dead_.size());
    return solution;
  }

  Backend& backend_;
  Stream& stream_;
  const LayerProblem& problem_;
  const int64_t rows_;
  const int64_t cols_;
  const std::vector<int64_t> layer_rows_;
  std::vector<int64_t> live_;
  std::vector<int64_t> dead_;
  LatticeInputs inputs_;  // of the live columns
  double damping_ = 0.0;  // relative
  int64_t retries_ = 0;
  LatticeProblem lattice_;
  std::vector<double> spreads_;
  double unit_spacing_ = 1.0;  // c at nominal rate 0
  // The last solution of the search.
  double spacing_ = 0.0;  // c
  LatticeCodes codes_;
  std::vector<CodeCounts> counts_;               // of each layer
  std::vector<CodingModel> models_;              // of each layer
  std::vector<LatticeWeight::CodedRows> coded_;  // of each layer, when last measured
};

class WaterSic final : public QuantizationMethod {
 public:
  absl::StatusOr<LayerSolution> Solve(
      Backend& backend, Stream& stream, const LayerProblem& problem,
      absl::FunctionRef<void(absl::string_view)> stage) const override {
    return Solver(backend, stream, problem).Run(stage);
  }
};

}  // namespace

const QuantizationMethod& WaterSicMethod() {
  static const WaterSic method;
  return method;
}

}  // namespace quantd::compute
