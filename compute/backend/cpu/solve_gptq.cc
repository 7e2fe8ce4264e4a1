#include "compute/backend/cpu/solve_gptq.h"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/block_product.h"
#include "compute/backend/cpu/cholesky.h"
#include "compute/backend/cpu/gptq_feedback.h"
#include "compute/backend/cpu/gptq_moment.h"
#include "compute/backend/cpu/gptq_scales.h"
#include "compute/backend/cpu/gptq_transforms.h"
#include "compute/backend/cpu/host_memory.h"
#include "compute/backend/cpu/matrix_product.h"
#include "compute/backend/cpu/quantize_rows.h"
#include "compute/backend/cpu/quantized_matrix.h"
#include "compute/backend/gptq_plan.h"
#include "compute/formats/element_codec.h"

namespace quantd::compute {
namespace {

using Eigen::MatrixXd;
using RowMajorMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstBlock = Eigen::Map<const RowMajorMatrix, 0, Eigen::OuterStride<>>;

// Rows that go through a unit together: their errors fit the cache beside the coupling.
constexpr int64_t kPanelRows = 64;
constexpr int64_t kProductTile = 192;
constexpr double kFirstJitter = 1e-12;
constexpr double kLastJitter = 1e-2;

// One thread's working memory for a panel of a unit.
struct PanelScratch {
  std::vector<double> feedback;     // rows x width, arranged
  std::vector<double> transformed;  // rows x width
  std::vector<double> columns;      // width x rows
  std::vector<double> steps;        // groups x rows
  std::vector<double> back;         // rows x width
  std::vector<uint8_t> codes;       // width x rows
};

// One layer on its way: numbers as in docs/numerics.md, section 8.
class GptqRun {
 public:
  GptqRun(WorkerPool& pool, Stream& stream, const NumberFormat& format, const GptqProblem& problem)
      : pool_(pool),
        stream_(stream),
        format_(format),
        p_(problem),
        rows_(problem.weight.dim(0)),
        cols_(problem.weight.dim(1)),
        panel_rows_(std::lcm(kPanelRows, format.grid().rows)),
        panels_((rows_ + panel_rows_ - 1) / panel_rows_),
        negative_zeros_(problem.order == BlockOrder::kDescending && format.element_bits() == 4 &&
                        format.element_mantissa_bits().has_value()) {}

  absl::StatusOr<GptqSolution> Run() {
    if (absl::Status status = Prepare(); !status.ok()) return status;
    absl::Status status = transforms_->data_aware() ? SolveUnitByUnit() : SolveRowByRow();
    if (!status.ok()) return status;
    return Finish();
  }

 private:
  absl::Status Prepare() {
    absl::StatusOr<GptqTransforms> transforms = GptqTransforms::Create(pool_, stream_, p_);
    if (!transforms.ok()) return transforms.status();
    transforms_ = std::make_unique<GptqTransforms>(*std::move(transforms));
    const absl::Span<const double> moment = HostTensor(p_.second_moment).as<double>();
    std::vector<double> diagonal;
    for (int64_t c = 0; p_.act_order && c < cols_; ++c) diagonal.push_back(moment[c * (cols_ + 1)]);
    plan_ = PlanGptq({.cols = cols_,
                      .scale_cols = format_.grid().cols,
                      .transform_block = transforms_->identity() ? 0 : p_.block_size,
                      .descending = p_.order == BlockOrder::kDescending,
                      .diagonal = diagonal});
    absl::StatusOr<GptqMoment> factored =
        GptqMoment::Factor(pool_, stream_, plan_, moment, p_.damping);
    if (!factored.ok()) return factored.status();
    moment_ = std::make_unique<GptqMoment>(*std::move(factored));
    if (absl::Status status = SetTarget(moment); !status.ok()) return status;
    moment_->Split(pool_, stream_, plan_);
    if (absl::Status status = Allocate(); !status.ok()) return status;
    return PrepareScales();
  }

  // With drift the codes approximate W* = W + W (E[x xhat^T] - E[xhat xhat^T]) M^-1.
  absl::Status SetTarget(absl::Span<const double> moment) {
    target_ = Doubles(p_.weight);
    if (p_.cross_moment.empty()) return absl::OkStatus();
    absl::StatusOr<WritableTensor> shifted = NewMatrix(stream_, {rows_, cols_});
    if (!shifted.ok()) return shifted.status();
    absl::StatusOr<WritableTensor> drift = NewMatrix(stream_, {cols_, cols_});
    if (!drift.ok()) return drift.status();
    const double* cross = Doubles(p_.cross_moment);
    for (int64_t i = 0; i < cols_ * cols_; ++i) drift->data[i] = cross[i] - moment[i];
    ForEachPanel([&](int64_t, int64_t first, int64_t rows) {
      const double* from = target_ + first * cols_;
      double* to = shifted->data + first * cols_;
      std::vector<double> product(rows * cols_);
      std::vector<double> arranged(rows * cols_);
      Multiply(rows, cols_, cols_, from, cols_, drift->data, cols_, product.data(), cols_);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < cols_; ++i) {
          arranged[r * cols_ + i] = product[r * cols_ + plan_.arranged[i]];
        }
      }
      moment_->Solve(rows, arranged.data());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < cols_; ++i) {
          const int64_t at = r * cols_ + plan_.arranged[i];
          to[at] = from[at] + arranged[r * cols_ + i];
        }
      }
    });
    shifted_ = std::move(shifted->tensor);
    target_ = Doubles(shifted_);
    return absl::OkStatus();
  }

  absl::Status Allocate() {
    for (WritableTensor* matrix : {&errors_, &decoded_, &dequantized_}) {
      if (matrix == &dequantized_ && transforms_->identity()) continue;
      absl::StatusOr<WritableTensor> made = NewMatrix(stream_, {rows_, cols_});
      if (!made.ok()) return made.status();
      *matrix = *std::move(made);
    }
    for (const GptqUnit& unit : plan_.units) widest_ = std::max(widest_, unit.width);
    absl::StatusOr<WritableTensor> updated = NewMatrix(stream_, {rows_, widest_});
    if (!updated.ok()) return updated.status();
    updated_ = *std::move(updated);
    codes_.resize(rows_ * cols_);
    couplings_.resize(plan_.units.size());
    return absl::OkStatus();
  }

  // What scales need to know of the whole layer: the largest magnitude before any feedback. Data-
  // aware transforms are solved for it as RTN solves them, and again later, from updated weights.
  absl::Status PrepareScales() {
    if (transforms_->data_aware() && transforms_->conditional()) SetSpectrumFloor();
    double amax = 0.0;
    if (GptqGlobal::FollowsAmax(format_)) {
      if (transforms_->data_aware()) {
        absl::Status status = SolveBlocks(
            0, cols_ / p_.block_size, [&](int64_t block) { return GramOf(block); },
            [&](int64_t block) {
              return MatrixXd(ConstBlock(target_ + block * p_.block_size, rows_, p_.block_size,
                                         Eigen::OuterStride<>(cols_)));
            });
        if (!status.ok()) return status;
      }
      amax = LargestTransformed();
    }
    scales_ = std::make_unique<GptqScales>(format_, rows_, cols_, amax);
    return absl::OkStatus();
  }

  double LargestTransformed() {
    std::vector<double> largest(panels_);
    ForEachPanel([&](int64_t panel, int64_t first, int64_t rows) {
      const double* from = target_ + first * cols_;
      std::vector<double> transformed;
      if (!transforms_->identity()) {
        transformed.resize(rows * cols_);
        ApplyBlocks(p_.block_size, transforms_->tw(0), rows, cols_, from, transformed.data());
        from = transformed.data();
      }
      largest[panel] = compute::MaxMagnitude(from, rows * cols_);
    });
    return *std::max_element(largest.begin(), largest.end());
  }

  MatrixXd GramOf(int64_t block) const {
    const ConstBlock w(target_ + block * p_.block_size, rows_, p_.block_size,
                       Eigen::OuterStride<>(cols_));
    return w.transpose() * w / static_cast<double>(rows_);
  }

  void SetSpectrumFloor() {
    const int64_t blocks = cols_ / p_.block_size;
    std::vector<double> energy(blocks);
    pool_.ParallelFor(0, blocks, 1, [&](int64_t block, int64_t) {
      const MatrixXd basis = BasisOf(block);
      energy[block] = (basis * GramOf(block)).cwiseProduct(basis).sum() / p_.block_size;
    });
    double mean = 0.0;
    for (const double e : energy) mean += std::max(e, 0.0) / static_cast<double>(blocks);
    transforms_->SetSpectrumFloor(mean);
  }

  // A_bb, upper, in the layer's order of columns: A_bb^T A_bb is what the unit's factor has there.
  MatrixXd BasisOf(int64_t block) const {
    const int64_t size = p_.block_size;
    const GptqUnit* unit = UnitOf(block * size);
    // Inside a unit with transforms the order is the layer's or its reverse.
    const int64_t offset = block * size - unit->first;
    const bool reversed = unit->inner.front() != 0;
    const int64_t begin = reversed ? unit->width - offset - size : offset;
    const ConstBlock values(moment_->unit_factor(*unit) + begin * (cols_ + 1), size, size,
                            Eigen::OuterStride<>(cols_));
    const MatrixXd lower = values.triangularView<Eigen::Lower>();
    if (!reversed) return lower.transpose();
    const MatrixXd gram = (lower * lower.transpose()).reverse();
    return gram.llt().matrixU();
  }

  const GptqUnit* UnitOf(int64_t column) const {
    for (const GptqUnit& unit : plan_.units) {
      if (unit.first <= column && column < unit.first + unit.width) return &unit;
    }
    return nullptr;
  }

  // Transforms of the blocks [first, last). `gram`(block) is Mw, `weights`(block) W_b.
  template <typename Gram, typename Weights>
  absl::Status SolveBlocks(int64_t first, int64_t last, const Gram& gram, const Weights& weights) {
    std::vector<absl::Status> statuses(last - first);
    pool_.ParallelFor(first, last, 1, [&](int64_t block, int64_t) {
      if (statuses[block - first] = stream_.CheckCancelled(); !statuses[block - first].ok()) return;
      if (transforms_->conditional()) {
        const MatrixXd basis = BasisOf(block);
        statuses[block - first] =
            transforms_->SolveConditional(block, basis, weights(block) * basis.transpose());
      } else {
        statuses[block - first] = transforms_->SolveMarginal(block, gram(block));
      }
    });
    for (const absl::Status& status : statuses) {
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // Transforms that no weight changes: every row goes its way alone.
  absl::Status SolveRowByRow() {
    const auto units = static_cast<int64_t>(plan_.units.size());
    std::vector<absl::Status> statuses(units);
    pool_.ParallelFor(0, units, 1, [&](int64_t g, int64_t) {
      statuses[g] = stream_.CheckCancelled();
      if (statuses[g].ok()) statuses[g] = Couple(g);
    });
    for (const absl::Status& status : statuses) {
      if (!status.ok()) return status;
    }
    ForEachPanel([&](int64_t, int64_t first, int64_t rows) {
      for (int64_t g = units - 1; g >= 0; --g) {
        Update(g, first, rows);
        Quantize(g, first, rows);
      }
    });
    return stream_.CheckCancelled();
  }

  // Each unit's transforms need all rows of its updated weights.
  absl::Status SolveUnitByUnit() {
    const auto units = static_cast<int64_t>(plan_.units.size());
    const int64_t size = p_.block_size;
    for (int64_t g = units - 1; g >= 0; --g) {
      const GptqUnit& unit = plan_.units[g];
      const int64_t blocks = unit.width / size;
      std::vector<double> grams(panels_ * blocks * size * size);
      ForEachPanel([&](int64_t panel, int64_t first, int64_t rows) {
        if (g + 1 < units) Quantize(g + 1, first, rows);
        Update(g, first, rows);
        for (int64_t b = 0; b < blocks && !transforms_->conditional(); ++b) {
          GramLower(size, rows, Updated(first) + b * size, unit.width, 0.0,
                    grams.data() + (panel * blocks + b) * size * size, size);
        }
      });
      if (absl::Status status = stream_.CheckCancelled(); !status.ok()) return status;
      // The next unit's coupling is not read any more.
      if (g + 1 < units) couplings_[g + 1] = {};
      const int64_t first_block = unit.first / size;
      absl::Status status = SolveBlocks(
          first_block, first_block + blocks,
          [&](int64_t block) {
            MatrixXd sum = MatrixXd::Zero(size, size);
            for (int64_t panel = 0; panel < panels_; ++panel) {
              const double* part =
                  grams.data() + (panel * blocks + block - first_block) * size * size;
              sum += ConstBlock(part, size, size, Eigen::OuterStride<>(size));
            }
            const MatrixXd symmetric = sum.selfadjointView<Eigen::Lower>();
            return MatrixXd(symmetric / static_cast<double>(rows_));
          },
          [&](int64_t block) {
            MatrixXd weights(rows_, size);
            ForEachPanel([&](int64_t, int64_t first, int64_t rows) {
              weights.middleRows(first, rows) =
                  ConstBlock(Updated(first) + (block - first_block) * size, rows, size,
                             Eigen::OuterStride<>(unit.width));
            });
            return weights;
          });
      if (!status.ok()) return status;
      if (status = Couple(g); !status.ok()) return status;
    }
    ForEachPanel([&](int64_t, int64_t first, int64_t rows) { Quantize(0, first, rows); });
    return stream_.CheckCancelled();
  }

  // The unit's coupling in the space of its transform.
  absl::Status Couple(int64_t g) {
    const GptqUnit& unit = plan_.units[g];
    const int64_t n = unit.width;
    const double* lower = moment_->unit_factor(unit);
    UnitCoupling& coupling = couplings_[g];
    coupling.order = unit.inner;
    coupling.coupling.resize(n * n);
    double* to = coupling.coupling.data();
    if (transforms_->identity()) {
      for (int64_t i = 0; i < n; ++i) std::copy_n(lower + i * cols_, i + 1, to + i * n);
    } else if (absl::Status status = FactorTransformed(unit, lower, to); !status.ok()) {
      return status;
    }
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < i; ++j) to[i * n + j] /= to[j * n + j];
    }
    return absl::OkStatus();
  }

  // The Cholesky factor of T D T^T, arranged, with D = L L^T.
  absl::Status FactorTransformed(const GptqUnit& unit, const double* lower, double* to) {
    const int64_t n = unit.width;
    const int64_t size = p_.block_size;
    std::vector<double> natural(n * n);
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(lower + i * cols_, i + 1, natural.data() + unit.inner[i] * n);
    }
    std::vector<double> half(n * n);  // T L, arranged again
    std::vector<double> product(size * n);
    std::vector<int64_t> position(n);
    for (int64_t i = 0; i < n; ++i) position[unit.inner[i]] = i;
    for (int64_t b = 0; b < n; b += size) {
      Multiply(size, n, size, transforms_->tx((unit.first + b) / size), size,
               natural.data() + b * n, n, product.data(), n);
      for (int64_t i = 0; i < size; ++i) {
        std::copy_n(product.data() + i * n, n, half.data() + position[b + i] * n);
      }
    }
    std::vector<double> moment(n * n);
    const int64_t tiles = (n + kProductTile - 1) / kProductTile;
    pool_.ParallelFor(0, tiles * tiles, 1, [&](int64_t tile, int64_t) {
      const int64_t row = tile / tiles * kProductTile;
      const int64_t col = tile % tiles * kProductTile;
      if (col > row) return;
      MultiplyTransposed(std::min(kProductTile, n - row), std::min(kProductTile, n - col), n,
                         half.data() + row * n, n, half.data() + col * n, n,
                         moment.data() + row * n + col, n);
    });
    double mean = 0.0;
    for (int64_t i = 0; i < n; ++i) mean += moment[i * (n + 1)] / static_cast<double>(n);
    // Positive definite but for rounding.
    for (double jitter = 0.0; jitter <= kLastJitter;
         jitter = std::max(10.0 * jitter, kFirstJitter)) {
      std::copy_n(moment.data(), n * n, to);
      for (int64_t i = 0; i < n; ++i) to[i * (n + 1)] += jitter * mean;
      if (FactorCholesky(pool_, n, to, &stream_)) return absl::OkStatus();
      if (absl::Status status = stream_.CheckCancelled(); !status.ok()) return status;
    }
    return NotPositive(absl::StrCat("the transformed block at column ", unit.first));
  }

  // Where a panel's updated weights are, rows of the unit's width beside each other.
  double* Updated(int64_t first) const { return updated_.data + first * widest_; }

  // W'_g = W_g + (W - What) K: what the unit's weights are, given every later one.
  void Update(int64_t g, int64_t first, int64_t rows) {
    const GptqUnit& unit = plan_.units[g];
    const int64_t n = unit.width;
    const int64_t after = unit.begin + n;
    double* to = Updated(first);
    std::vector<double>& feedback = Scratch().feedback;
    feedback.assign(rows * n, 0.0);
    if (after < cols_) {
      Multiply(rows, n, cols_ - after, errors_.data + first * cols_ + after, cols_,
               moment_->coupling(after, unit), cols_, feedback.data(), n);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const double* own = target_ + (first + r) * cols_ + unit.first;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t column = unit.inner[i];
        to[r * n + column] = own[column] + feedback[r * n + i];
      }
    }
  }

  // The unit's codes, decoded values and errors from its updated weights.
  void Quantize(int64_t g, int64_t first, int64_t rows) {
    if (!stream_.CheckCancelled().ok()) return;
    const GptqUnit& unit = plan_.units[g];
    const int64_t n = unit.width;
    PanelScratch& scratch = Scratch();
    const double* transformed = Updated(first);
    if (!transforms_->identity()) {
      scratch.transformed.resize(rows * n);
      ApplyBlocks(p_.block_size, transforms_->tw(unit.first / p_.block_size), rows, n, transformed,
                  scratch.transformed.data());
      transformed = scratch.transformed.data();
    }
    scales_->Set(first, rows, unit.first, n, transformed);
    scratch.columns.resize(n * rows);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < n; ++c) scratch.columns[c * rows + r] = transformed[r * n + c];
    }
    const int64_t group = std::min(format_.grid().cols, n);
    scratch.steps.resize((n + group - 1) / group * rows);
    for (int64_t c = 0; c < n; c += group) {
      scales_->Read(first, rows, unit.first + c, scratch.steps.data() + c / group * rows);
    }
    scratch.codes.resize(n * rows);
    FeedBack(format_, couplings_[g], negative_zeros_,
             {.rows = rows,
              .values = scratch.columns.data(),
              .codes = scratch.codes.data(),
              .scales = scratch.steps.data(),
              .group = group});
    Keep(unit, first, rows, scratch);
  }

  // Writes a panel's results row by row.
  void Keep(const GptqUnit& unit, int64_t first, int64_t rows, PanelScratch& scratch) {
    const int64_t n = unit.width;
    scratch.transformed.resize(rows * n);
    for (int64_t r = 0; r < rows; ++r) {
      double* values = scratch.transformed.data() + r * n;
      uint8_t* codes = codes_.data() + (first + r) * cols_ + unit.first;
      for (int64_t c = 0; c < n; ++c) {
        values[c] = scratch.columns[c * rows + r];
        codes[c] = scratch.codes[c * rows + r];
      }
      std::copy_n(values, n, decoded_.data + (first + r) * cols_ + unit.first);
    }
    const double* seen = scratch.transformed.data();
    if (!transforms_->identity()) {
      scratch.back.resize(rows * n);
      ApplyTransposedBlocks(p_.block_size, transforms_->tx(unit.first / p_.block_size), rows, n,
                            seen, scratch.back.data());
      seen = scratch.back.data();
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (first + r) * cols_;
      if (!transforms_->identity()) {
        std::copy_n(seen + r * n, n, dequantized_.data + at + unit.first);
      }
      for (int64_t i = 0; i < n; ++i) {
        const int64_t column = unit.inner[i];
        errors_.data[at + unit.begin + i] =
            target_[at + unit.first + column] - seen[r * n + column];
      }
    }
  }

  absl::StatusOr<GptqSolution> Finish() {
    absl::StatusOr<EncodedMatrix> encoded = EncodeMatrix(
        pool_, format_, rows_, cols_, scales_->FinalGlobal(), codes_, scales_->scales());
    if (!encoded.ok()) return encoded.status();
    GptqSolution solution;
    solution.damping = moment_->damping();
    solution.retries = moment_->retries();
    const bool identity = transforms_->identity();
    solution.transform = std::move(*transforms_).Finish(stream_);
    solution.quantized = {
        .codes = Adopt(stream_, std::move(encoded->codes)),
        .scales = Adopt(stream_, std::move(encoded->scales)),
        .global_scale = encoded->global_scale,
        .dequantized = identity ? decoded_.tensor : std::move(dequantized_.tensor),
        .decoded = decoded_.tensor};
    return solution;
  }

  template <typename Body>
  void ForEachPanel(const Body& body) {
    pool_.ParallelFor(0, panels_, 1, [&](int64_t panel, int64_t) {
      const int64_t first = panel * panel_rows_;
      body(panel, first, std::min(panel_rows_, rows_ - first));
    });
  }

  static PanelScratch& Scratch() {
    static thread_local PanelScratch scratch;
    return scratch;
  }

  WorkerPool& pool_;
  Stream& stream_;
  const NumberFormat& format_;
  const GptqProblem& p_;
  const int64_t rows_;
  const int64_t cols_;
  const int64_t panel_rows_;
  const int64_t panels_;
  const bool negative_zeros_;
  GptqPlan plan_;
  std::unique_ptr<GptqTransforms> transforms_;
  std::unique_ptr<GptqMoment> moment_;
  std::unique_ptr<GptqScales> scales_;
  const double* target_ = nullptr;       // R x C
  DeviceTensor shifted_;                 // the target where it is not the weight
  WritableTensor errors_;                // R x C, arranged: target - dequantized
  WritableTensor decoded_;               // R x C
  WritableTensor dequantized_;           // R x C; none without a transform
  int64_t widest_ = 0;                   // of the units
  WritableTensor updated_;               // R x widest_
  std::vector<UnitCoupling> couplings_;  // by unit
  std::vector<uint8_t> codes_;           // R x C
};

}  // namespace

absl::StatusOr<GptqSolution> CpuSolveGptq(WorkerPool& pool, Stream& stream,
                                          const NumberFormat& format, const GptqProblem& problem) {
  return GptqRun(pool, stream, format, problem).Run();
}

}  // namespace quantd::compute
