#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "compute/backend/cuda/block_product_kernels.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/measure.h"
#include "compute/backend/cuda/measure_kernels.h"
#include "compute/backend/cuda/split_product.h"
#include "compute/backend/cuda/split_product_kernels.h"

// tr(dW M dW^T) by row and by column. A large full moment is multiplied in half precision (see
// split_product.h) where that is good for 1e-4 of the total, in float64 otherwise. What decides is
// how far the products off the diagonal cancel the diagonal, which float64 sums exactly: GPTQ's
// errors lie where M is small, and there the total is a small difference.
namespace quantd::compute {
namespace {

// Rows that are taken at a time: bounds the scratch and the time until a cancel is seen.
constexpr int64_t kSliceRows = 4096;
static_assert(kSliceRows % kRowChunk == 0);

// The first rows show whether the precision will do before all are multiplied.
constexpr int64_t kPilotRows = 512;
static_assert(kPilotRows % kRowChunk == 0);

// Totals below these shares of their diagonal part need the next precision.
constexpr double kLeastShareOfHigh = 0.4;
constexpr double kLeastShareOfSplit = 0.04;

struct Operands {
  int64_t rows;
  int64_t cols;
  const double* weight;
  const double* dequantized;  // may be null
  const DeviceTensor& moment;
  ErrorDetail detail;

  bool by_column() const { return detail == ErrorDetail::kRowsAndColumns; }
};

// Calls body(first, rows) for slices of the rows [begin, end).
template <typename Body>
absl::Status ForEachSlice(CudaStream& stream, int64_t begin, int64_t end, Body body) {
  for (int64_t first = begin; first < end; first += kSliceRows) {
    absl::Status status = stream.CheckCancelled();
    if (status.ok()) status = body(first, std::min(kSliceRows, end - first));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// --- Float64 ------------------------------------------------------------------------------------

// to[:, [begin, begin + width)] = alpha d[:, [from, from + inner)] M[that, those] + beta to, M
// full.
struct MomentBlock {
  int64_t begin;
  int64_t width;
  int64_t from;
  int64_t inner;
};
absl::Status MultiplyByBlock(CudaStream& stream, const Operands& of, const MomentBlock& block,
                             int64_t rows, const double* d, double alpha, double beta, double* to) {
  const double* const m = DeviceData<double>(of.moment) + block.from * of.cols + block.begin;
  return ToStatus(
      cublasDgemm_64(stream.blas(), CUBLAS_OP_N, CUBLAS_OP_N, block.width, rows, block.inner,
                     &alpha, m, of.cols, d + block.from, of.cols, &beta, to + block.begin, of.cols),
      "product with a moment");
}

// The sums of to o d by rows are d M d^T: half of the work, as in split_product.h.
absl::Status MultiplyByTriangle(CudaStream& stream, const Operands& of, int64_t rows,
                                const double* d, double* to) {
  constexpr int64_t kBlock = kTriangleBlock;
  absl::Status status;
  for (int64_t begin = 0; begin < of.cols && status.ok(); begin += kBlock) {
    const int64_t width = std::min(kBlock, of.cols - begin);
    status = MultiplyByBlock(stream, of, {begin, width, begin, width}, rows, d, 1.0, 0.0, to);
    if (status.ok() && begin > 0) {
      status = MultiplyByBlock(stream, of, {begin, width, 0, begin}, rows, d, 2.0, 1.0, to);
    }
  }
  return status;
}

// to = d M for `rows` rows, M full or a stack of diagonal blocks; of a full one what the detail
// needs.
absl::Status MultiplyByMoment(CudaStream& stream, const Operands& of, int64_t rows, const double* d,
                              double* to) {
  if (of.moment.shape().size() != 2) {  // blocks are symmetric
    return ToStatus(LaunchApplyBlocks(stream.get(), of.moment.dim(1), DeviceData<double>(of.moment),
                                      rows, of.cols, d, to),
                    "product with the blocks of a moment");
  }
  if (!of.by_column()) return MultiplyByTriangle(stream, of, rows, d, to);
  return MultiplyByBlock(stream, of, {0, of.cols, 0, of.cols}, rows, d, 1.0, 0.0, to);
}

absl::Status SumProducts(CudaStream& stream, const Operands& of, const double* d, double* by_row,
                         double* by_column) {
  const int64_t chunks = ColumnChunks(of.cols);
  auto row_partial = DeviceBuffer<double>::Allocate(stream, of.rows * chunks);
  if (!row_partial.ok()) return row_partial.status();
  auto column_partial = DeviceBuffer<double>::Allocate(stream, RowChunks(of.rows) * of.cols);
  if (!column_partial.ok()) return column_partial.status();
  auto product = DeviceBuffer<double>::Allocate(stream, std::min(kSliceRows, of.rows) * of.cols);
  if (!product.ok()) return product.status();
  absl::Status status = ForEachSlice(stream, 0, of.rows, [&](int64_t first, int64_t rows) {
    const double* slice = d + first * of.cols;
    absl::Status done = MultiplyByMoment(stream, of, rows, slice, product->data());
    if (!done.ok()) return done;
    return ToStatus(LaunchProductSums(stream.get(), rows, of.cols, product->data(), slice,
                                      row_partial->data() + first * chunks,
                                      column_partial->data() + first / kRowChunk * of.cols),
                    "weight error");
  });
  if (status.ok()) {
    status =
        ToStatus(LaunchFinishRowSums(stream.get(), of.rows, chunks, row_partial->data(), by_row),
                 "weight error");
  }
  if (status.ok()) {
    status = ToStatus(LaunchFinishColumnSums(stream.get(), of.cols, RowChunks(of.rows),
                                             column_partial->data(), by_column),
                      "weight error");
  }
  return status;
}

absl::StatusOr<WeightError> MeasureExactly(CudaStream& stream, const Operands& of) {
  const bool has_moment = !of.moment.empty();
  const int64_t size = of.rows * of.cols;
  // Partial maxima and sums of squares, then by row and by column.
  const int64_t count = 2 * kPartials + (has_moment ? of.rows + of.cols : 0);
  auto totals = DeviceBuffer<double>::Allocate(stream, count);
  if (!totals.ok()) return totals.status();
  DeviceBuffer<double> difference;
  if (of.dequantized != nullptr && has_moment) {
    auto buffer = DeviceBuffer<double>::Allocate(stream, size);
    if (!buffer.ok()) return buffer.status();
    difference = *std::move(buffer);
  }
  absl::Status status = ToStatus(LaunchDifference(stream.get(), size, of.weight, of.dequantized,
                                                  difference.data(), totals->data()),
                                 "weight error");
  if (status.ok() && has_moment) {
    double* const by_row = totals->data() + 2 * kPartials;
    status = SumProducts(stream, of, of.dequantized == nullptr ? of.weight : difference.data(),
                         by_row, by_row + of.rows);
  }
  if (!status.ok()) return status;
  const absl::StatusOr<std::vector<double>> host = CopyToHost(stream, totals->data(), count);
  if (!host.ok()) return host.status();
  WeightError error;
  const auto parts = host->begin();
  error.max_abs = *std::max_element(parts, parts + kPartials);
  for (int i = 0; i < kPartials; ++i) error.sum_squares += parts[kPartials + i];
  if (!has_moment) return error;
  error.by_row.assign(parts + 2 * kPartials, parts + 2 * kPartials + of.rows);
  if (of.by_column()) error.by_column.assign(parts + 2 * kPartials + of.rows, host->end());
  return error;
}

// --- Half precision -----------------------------------------------------------------------------

// What one pass over the rows needs.
class SplitPass {
 public:
  static absl::StatusOr<SplitPass> Create(CudaStream& stream, const Operands& of) {
    SplitPass pass(of);
    const int64_t slice = std::min(kSliceRows, of.rows) * of.cols;
    auto product = DeviceBuffer<float>::Allocate(stream, slice);
    if (!product.ok()) return product.status();
    auto halves = DeviceBuffer<__half>::Allocate(stream, slice);
    if (!halves.ok()) return halves.status();
    auto doubles = DeviceBuffer<double>::Allocate(
        stream, of.rows * (4 + SplitColumnChunks(of.cols)) + RowChunks(of.rows) * of.cols);
    if (!doubles.ok()) return doubles.status();
    // By row, by column, then energy, largest and squares.
    auto totals = DeviceBuffer<double>::Allocate(stream, of.rows + of.cols + 3);
    if (!totals.ok()) return totals.status();
    pass.product_ = *std::move(product);
    pass.halves_ = *std::move(halves);
    pass.doubles_ = *std::move(doubles);
    pass.totals_ = *std::move(totals);
    return pass;
  }

  // The rows [begin, end).
  absl::Status Run(CudaStream& stream, const SplitMoment& moment, int64_t begin, int64_t end) {
    return ForEachSlice(stream, begin, end, [&](int64_t first, int64_t rows) {
      return RunSlice(stream, moment, first, rows);
    });
  }

  // Waits. Of the rows [0, rows), which have run: their total as a share of its diagonal part.
  absl::StatusOr<double> Share(CudaStream& stream, int64_t rows) const {
    const absl::StatusOr<std::vector<double>> partial =
        CopyToHost(stream, row_partial(), rows * SplitColumnChunks(of_.cols));
    if (!partial.ok()) return partial.status();
    const absl::StatusOr<std::vector<double>> energy = CopyToHost(stream, Scaled(0).energy, rows);
    if (!energy.ok()) return energy.status();
    const double diagonal = std::accumulate(energy->begin(), energy->end(), 0.0);
    return std::accumulate(partial->begin(), partial->end(), 0.0) / diagonal;
  }

  absl::Status Finish(CudaStream& stream) {
    double* const by_row = totals_.data();
    double* const by_column = by_row + of_.rows;
    absl::Status status =
        ToStatus(LaunchFinishRowSums(stream.get(), of_.rows, SplitColumnChunks(of_.cols),
                                     row_partial(), by_row),
                 "weight error");
    if (status.ok() && of_.by_column()) {
      status = ToStatus(LaunchFinishColumnSums(stream.get(), of_.cols, RowChunks(of_.rows),
                                               column_partial(), by_column),
                        "weight error");
    }
    if (!status.ok()) return status;
    return ToStatus(LaunchSumRows(stream.get(), of_.rows, Scaled(0), by_column + of_.cols),
                    "weight error");
  }

  // Waits. Unset where the total is not at least `least_share` of its diagonal part, or float32
  // does not hold what it is summed from.
  absl::StatusOr<std::optional<WeightError>> Read(CudaStream& stream, const SplitMoment& moment,
                                                  double least_share) const {
    const absl::StatusOr<std::vector<int>> irregular =
        CopyToHost(stream, moment.irregular.data(), 1);
    if (!irregular.ok()) return irregular.status();
    const absl::StatusOr<std::vector<double>> host =
        CopyToHost(stream, totals_.data(), totals_.size());
    if (!host.ok()) return host.status();
    const double* const by_row = host->data();
    const double* const by_column = by_row + of_.rows;
    const double* const totals = by_column + of_.cols;
    WeightError error = {.max_abs = totals[1],
                         .sum_squares = totals[2],
                         .by_row = {by_row, by_column},
                         .by_column = {}};
    if (of_.by_column()) error.by_column.assign(by_column, totals);
    const double energy = totals[0];
    double total = 0.0;
    for (const double part : error.by_row) total += part;
    if (energy == 0.0 && irregular->front() == 0) return error;
    constexpr double kLeastMean = 1e-50;
    constexpr double kLargest = 1e50;
    const bool holds = energy / static_cast<double>(of_.rows * of_.cols) > kLeastMean &&
                       energy < kLargest && total >= least_share * energy;  // false for NaN
    if (!holds || irregular->front() != 0) return std::nullopt;
    return error;
  }

 private:
  explicit SplitPass(const Operands& of) : of_(of) {}

  absl::Status RunSlice(CudaStream& stream, const SplitMoment& moment, int64_t first,
                        int64_t rows) {
    const ScaledRows scaled = Scaled(first);
    const double* q = of_.dequantized == nullptr ? nullptr : of_.dequantized + first * of_.cols;
    absl::Status status =
        ToStatus(LaunchScaleRows(stream.get(), rows, of_.cols, of_.weight + first * of_.cols, q,
                                 moment.root.data(), scaled),
                 "weight error");
    if (status.ok()) {
      status = MultiplySplit(stream, moment, rows, of_.cols, scaled.half, product_.data());
    }
    if (!status.ok()) return status;
    return ToStatus(
        LaunchSplitProductSums(stream.get(), rows, of_.cols, product_.data(), scaled.half,
                               scaled.scale, row_partial() + first * SplitColumnChunks(of_.cols),
                               column_partial() + first / kRowChunk * of_.cols),
        "weight error");
  }

  // The rows from `first` on; halves are the slice's.
  ScaledRows Scaled(int64_t first) const {
    double* const base = doubles_.data() + first;
    return {.half = halves_.data(),
            .scale = base,
            .energy = base + of_.rows,
            .largest = base + 2 * of_.rows,
            .squares = base + 3 * of_.rows};
  }
  double* row_partial() const { return doubles_.data() + 4 * of_.rows; }
  double* column_partial() const { return row_partial() + of_.rows * SplitColumnChunks(of_.cols); }

  Operands of_;
  DeviceBuffer<float> product_;
  DeviceBuffer<__half> halves_;
  DeviceBuffer<double> doubles_;
  DeviceBuffer<double> totals_;
};

// Unset where the precision is not enough.
absl::StatusOr<std::optional<WeightError>> MeasureSplit(CudaStream& stream, const Operands& of,
                                                        bool with_low) {
  const double least_share = with_low ? kLeastShareOfSplit : kLeastShareOfHigh;
  const absl::StatusOr<SplitMoment> moment =
      SplitSecondMoment(stream, of.moment, with_low, /*triangle=*/!of.by_column());
  if (!moment.ok()) return moment.status();
  absl::StatusOr<SplitPass> pass = SplitPass::Create(stream, of);
  if (!pass.ok()) return pass.status();
  // Weights themselves are not made for M: their totals are no small differences.
  const int64_t pilot = of.dequantized == nullptr ? 0 : std::min(kPilotRows, of.rows);
  if (pilot > 0) {
    if (absl::Status s = pass->Run(stream, *moment, 0, pilot); !s.ok()) return s;
    const absl::StatusOr<double> share = pass->Share(stream, pilot);
    if (!share.ok()) return share.status();
    if (*share < least_share) return std::nullopt;  // not for NaN: rows of zeros
  }
  absl::Status status = pass->Run(stream, *moment, pilot, of.rows);
  if (status.ok()) status = pass->Finish(stream);
  if (!status.ok()) return status;
  return pass->Read(stream, *moment, least_share);
}

}  // namespace

absl::StatusOr<WeightError> CudaMeasureWeightError(CudaStream& stream, const DeviceTensor& weight,
                                                   const DeviceTensor& dequantized,
                                                   const DeviceTensor& second_moment,
                                                   ErrorDetail detail) {
  const Operands of = {.rows = weight.dim(0),
                       .cols = weight.dim(1),
                       .weight = DeviceData<double>(weight),
                       .dequantized = DeviceData<double>(dequantized),
                       .moment = second_moment,
                       .detail = detail};
  if (!second_moment.empty() && second_moment.shape().size() == 2 &&
      CanSplitMoment(of.rows, of.cols)) {
    for (const bool with_low : {false, true}) {
      absl::StatusOr<std::optional<WeightError>> error = MeasureSplit(stream, of, with_low);
      if (!error.ok()) return error.status();
      if (error->has_value()) return **std::move(error);
    }
  }
  return MeasureExactly(stream, of);
}

}  // namespace quantd::compute
