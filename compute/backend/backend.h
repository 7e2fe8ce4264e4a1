#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compute/coding/coding_model.h"
#include "compute/coding/integer_coder.h"
#include "compute/formats/number_format.h"
#include "compute/recipe/recipe.h"
#include "compute/second_moment/second_moment.h"
#include "compute/tensor/tensor.h"

// The contract between the method and the device. One op is one step that a reader of the papers
// would name. Operands are device matrices; an op reads its operands, returns new ones and runs in
// the order of its stream. The CPU implementation is the float64 reference that others are held to.
namespace quantd::compute {

struct DeviceInfo {
  std::string name;         // "cpu", "cuda:0"
  std::string description;  // "AMD EPYC 9654, 2 threads"
  int64_t memory_bytes = 0;
  int64_t used_bytes = 0;         // of it: on the CPU by this process, on a GPU by everyone
  double flops_per_second = 0.0;  // nominal, float64 products: what estimates of time go by
  std::string uuid = {};          // of a GPU, as nvidia-smi -L shows it: "GPU-..."; else empty
};

// What a device is doing, as far as its driver says. `unknown` says why something is empty that a
// GPU's driver should know.
struct DeviceActivity {
  std::optional<double> utilisation;  // share of the last second or less in which it computed, 0..1
  std::optional<double> power_watts;
  std::optional<double> temperature_celsius;
  std::string unknown;
};

// A dense row-major matrix (or C/B x B x B stack of blocks) in the memory of one backend's device.
// Cheap to copy: copies share the memory, which no op changes after it was written.
class DeviceTensor {
 public:
  // Device memory; each backend derives its own. Destroying the last copy frees it.
  class Memory {
   public:
    virtual ~Memory() = default;
  };

  DeviceTensor() = default;
  DeviceTensor(DType dtype, std::vector<int64_t> shape, std::shared_ptr<const Memory> memory)
      : dtype_(dtype), shape_(std::move(shape)), memory_(std::move(memory)) {}

  DType dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t dim(int axis) const { return shape_[axis]; }
  bool empty() const { return memory_ == nullptr; }
  const Memory* memory() const { return memory_.get(); }

 private:
  DType dtype_ = DType::kF64;
  std::vector<int64_t> shape_;
  std::shared_ptr<const Memory> memory_;
};

// Set from any thread to stop a running layer; ops look at it between slices of work and return
// CANCELLED.
class CancelFlag {
 public:
  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  absl::Status Check() const {
    return cancelled() ? absl::CancelledError("the layer was cancelled") : absl::OkStatus();
  }

 private:
  std::atomic<bool> cancelled_{false};
};

// The order in which ops of one layer run. Used by one thread at a time; streams of one backend run
// beside each other.
class Stream {
 public:
  explicit Stream(const CancelFlag* cancel) : cancel_(cancel) {}
  virtual ~Stream() = default;
  // Waits for all work; the first error of any op of the stream.
  virtual absl::Status Synchronize() = 0;
  // Most device memory that tensors made on this stream held at one time.
  virtual int64_t peak_bytes() const = 0;
  absl::Status CheckCancelled() const {
    return cancel_ == nullptr ? absl::OkStatus() : cancel_->Check();
  }

 private:
  const CancelFlag* cancel_;
};

// Tokens to accumulate, as rows. `data` is x, for the paired kinds xhat.
struct TokenChunk {
  DType dtype = DType::kF32;                // of data and paired; a float dtype
  int64_t tokens = 0;                       // >= 1
  absl::Span<const std::byte> data = {};    // tokens x cols
  absl::Span<const float> weights = {};     // kWeighted: one a token, finite and >= 0; else empty
  absl::Span<const std::byte> paired = {};  // kCross: x, kResidual: r - rhat, tokens x paired_cols
};

// Device memory that another process of this machine allocated and exported, open for reading.
// Thread-safe.
class DeviceRegion {
 public:
  virtual ~DeviceRegion() = default;
  // Copies the bytes from `offset` on. OUT_OF_RANGE, before anything is copied, where they are not
  // all within the region.
  virtual absl::Status Read(int64_t offset, absl::Span<std::byte> to) const = 0;
};

// Sums products of streamed tokens (MomentKind) on the device. Folds every kSliceTokens tokens,
// whatever the chunk sizes, so the same tokens in the same order give the same bits. Weights of 1
// give the bits of the unweighted sum. Relative Frobenius error against float64: <= 1e-6. Used by
// one thread at a time.
class MomentAccumulator {
 public:
  virtual ~MomentAccumulator() = default;
  // NaN, Inf and magnitudes beyond float32's are refused (INVALID_ARGUMENT names row and column),
  // and so is what the kind does not take, or takes and is missing; the sum stays as it was.
  // `first_token` is the stream position of row 0 and `key` names the stream: together they seed
  // the row sample, which is of the rows of `data`.
  virtual absl::Status Add(absl::string_view key, int64_t first_token, const TokenChunk& chunk) = 0;
  // The same for kSecondMoment.
  absl::Status Add(absl::string_view key, int64_t first_token, DType dtype, int64_t tokens,
                   absl::Span<const std::byte> data) {
    return Add(key, first_token, {.dtype = dtype, .tokens = tokens, .data = data});
  }
  // The sum so far, every added token included.
  virtual absl::StatusOr<SecondMoment> Snapshot() = 0;
};

// A stack of block transforms: x' = Tx x for activations, w' = Tw w for weights, Tw = Tx^-T.
struct BlockTransform {
  int64_t block_size = 0;  // B
  DeviceTensor tx;         // C/B x B x B, F32: what is stored and applied to activations
  DeviceTensor tw;         // C/B x B x B, F64: inverse transpose of the rounded tx
  bool identity = false;   // Tx = I: tx and tw are empty
};

struct TransformProblem {
  TransformKind kind = TransformKind::kIdentity;
  Solver solver = Solver::kMarginal;
  int64_t block_size = 32;  // B
  double damping = 1e-2;    // l, marginal solver
  uint64_t seed = 0;        // kRandom
  DeviceTensor weight;      // R x C, F64
  // kWus and kWush. Marginal: C/B x B x B diagonal blocks of M. Conditional: M, C x C. F64.
  DeviceTensor second_moment;
};

struct TransformSolution {
  BlockTransform transform;
  std::vector<double> trace;   // tr(S) of each block; empty for data-free transforms
  double condition_max = 1.0;  // largest 2-norm condition number of a block's Tx
  int64_t damped_blocks = 0;   // blocks that needed more damping than asked
  double damping_max = 0.0;    // largest relative damping used
};

// A weight with its transform applied and quantized, and the values that the codes decode to.
struct QuantizedWeight {
  // As they are stored: see EncodedMatrix.
  DeviceTensor codes;
  DeviceTensor scales;
  std::optional<float> global_scale;
  // R x C, F64: decoded codes times Tx, i.e. the matrix that the original inputs see.
  DeviceTensor dequantized;
  // R x C, F64: decoded codes, the matrix that the transformed inputs see.
  DeviceTensor decoded;
};

// GPTQ with block transforms (docs/numerics.md, section 8): columns are rounded one after the other
// and what rounding changes is made up for by those to come.
struct GptqProblem {
  TransformKind transform = TransformKind::kIdentity;
  Solver solver = Solver::kMarginal;
  int64_t block_size = 32;          // of the transform
  double transform_damping = 1e-2;  // l, marginal solver
  uint64_t seed = 0;                // kRandom
  // Tx to use instead of solving one: host, F32, C/B x B x B. May be null.
  const Tensor* given_transform = nullptr;
  BlockOrder order = BlockOrder::kAscending;
  bool act_order = false;
  double damping = 1e-2;  // relative to the mean diagonal of the second moment
  DeviceTensor weight;    // R x C, F64
  // C x C, F64: E[x x^T], or of the inputs xhat that the quantized layer gets.
  DeviceTensor second_moment;
  DeviceTensor cross_moment = {};  // C x C, F64: E[x xhat^T]; empty without drift
};

struct GptqSolution {
  TransformSolution transform;
  QuantizedWeight quantized;
  double damping = 0.0;  // of the second moment, relative, as used
  int64_t retries = 0;   // factorizations repeated with more of it
};

// Sums behind the error report, all measured on decoded results in float64.
struct WeightError {
  double max_abs = 0.0;      // of dW
  double sum_squares = 0.0;  // ||dW||_F^2
  // Empty without a second moment.
  std::vector<double> by_row;     // R: (dW M dW^T)_rr
  std::vector<double> by_column;  // C: (M dW^T dW)_cc; empty unless asked for
};
// Sums by row need one triangle of M alone, half of the work.
enum class ErrorDetail { kRows, kRowsAndColumns };
struct OutputError {
  double error = 0.0;   // ||Y - Yhat||_F^2 over the sample
  double energy = 0.0;  // ||Y||_F^2
};

// A damped second moment and its lower Cholesky factor: L L^T = M + added I.
struct MomentFactor {
  DeviceTensor lower;            // C x C, zeros above the diagonal
  std::vector<double> diagonal;  // L_ii
  double added = 0.0;
};

// WaterSIC (arXiv 2603.04956; docs/numerics.md, section 9). Matrices with one weight column a row
// are stored transposed, C x R, so that a column is contiguous.
struct LatticeInputs {
  DeviceTensor weight;      // W, R x C, F64
  DeviceTensor moment;      // M = E[x x^T], C x C
  MomentFactor factor;      // of moment_hat, or of moment without drift
  DeviceTensor moment_hat;  // E[xhat xhat^T], C x C; empty without drift
  DeviceTensor cross;       // E[x xhat^T], C x C; empty without drift
  DeviceTensor residual;    // E[(r - rhat) xhat^T], R x C; empty: 0
};
struct LatticeProblem {
  DeviceTensor moment_hat;   // C x C, undamped
  DeviceTensor correlation;  // K = W Mx + residual, C x R
  DeviceTensor target;       // Y = (K + added W) L^-T, C x R
  double energy = 0.0;       // tr(W M W^T)
};
struct LatticeCodes {
  DeviceTensor codes;         // Z, C x R, I32
  std::vector<double> gamma;  // C: LMMSE shrinkage
};
struct LatticeScales {
  std::vector<double> row;     // t, R; mean |t| = 1
  std::vector<double> column;  // alpha g, C
  // tr(W M W^T) - 2 tr(K What^T) + tr(What Mhat What^T) of What = diag(t) Z diag(alpha g).
  double loss = 0.0;
  int rounds = 0;  // of the alternation that were kept
};

// Thread-safe.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual DeviceInfo Describe() const = 0;
  // Asks the driver: for scrapes, not for every layer.
  virtual DeviceActivity Activity() const { return {}; }
  // Whether `resolved` can run here: asked at job creation, not assumed. UNIMPLEMENTED says what is
  // missing.
  virtual absl::Status Supports(const Recipe& resolved) const = 0;

  // `cancel` may be null and must outlive the stream.
  virtual absl::StatusOr<std::unique_ptr<Stream>> NewStream(const CancelFlag* cancel) = 0;

  // RESOURCE_EXHAUSTED where device memory is short. Float dtypes are widened to F64.
  virtual absl::StatusOr<DeviceTensor> Upload(Stream& stream, const Tensor& tensor) = 0;
  virtual absl::StatusOr<Tensor> Download(Stream& stream, const DeviceTensor& tensor) = 0;
  // Rows [first, first + rows) of a matrix.
  virtual absl::StatusOr<DeviceTensor> SliceRows(Stream& stream, const DeviceTensor& matrix,
                                                 int64_t first, int64_t rows) = 0;

  // The mean of a statistic, F64: C x C, R x C for a residual moment; the blocks of a
  // block-diagonal one, C/b x b x b. FAILED_PRECONDITION where there is nothing to divide by.
  virtual absl::StatusOr<DeviceTensor> UploadMean(Stream& stream, const SecondMoment& moment) = 0;
  // The blocks of `block_size` on the diagonal of a C x C matrix, or of a stack of larger blocks:
  // C/B x B x B.
  virtual absl::StatusOr<DeviceTensor> DiagonalBlocks(Stream& stream, const DeviceTensor& moment,
                                                      int64_t block_size) = 0;

  // Continues from `start` where given (its spec must equal `spec`).
  virtual absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewAccumulator(
      const MomentSpec& spec, const SecondMoment* start) = 0;

  // `handle`: the bytes of a cudaIpcMemHandle_t of memory on this device, `bytes` of which the
  // region gets. The backend outlives it. INVALID_ARGUMENT for what is no handle,
  // FAILED_PRECONDITION for one that does not open, OUT_OF_RANGE where the memory is shorter,
  // UNIMPLEMENTED on the CPU.
  virtual absl::StatusOr<std::unique_ptr<DeviceRegion>> OpenRegion(absl::string_view handle,
                                                                   int64_t bytes);

  // Solves every block's transform (WUSH, section 2 of docs/numerics.md) and rounds it to F32.
  virtual absl::StatusOr<TransformSolution> SolveTransforms(Stream& stream,
                                                            const TransformProblem& problem) = 0;
  // W' = W Tw^T by blocks, scales from W', codes rounded to nearest.
  virtual absl::StatusOr<QuantizedWeight> RoundToNearest(Stream& stream, const NumberFormat& format,
                                                         const BlockTransform& transform,
                                                         const DeviceTensor& weight) = 0;
  // Transforms and codes of one layer. INVALID_ARGUMENT where the second moment is not symmetric,
  // or not positive semidefinite even with its mean diagonal added.
  virtual absl::StatusOr<GptqSolution> SolveGptq(Stream& stream, const NumberFormat& format,
                                                 const GptqProblem& problem) = 0;
  // dW = weight - dequantized against `second_moment` (C x C or C/B x B x B, which stands for the
  // matrix of these diagonal blocks). Without `dequantized` dW = weight, which gives the energies
  // that errors are relative to.
  virtual absl::StatusOr<WeightError> MeasureWeightError(Stream& stream, const DeviceTensor& weight,
                                                         const DeviceTensor& dequantized,
                                                         const DeviceTensor& second_moment,
                                                         ErrorDetail detail) = 0;
  // Y = X W^T, n x R: the outputs for the sampled tokens X (n x C).
  virtual absl::StatusOr<DeviceTensor> ComputeOutputs(Stream& stream, const DeviceTensor& weight,
                                                      const DeviceTensor& sample) = 0;
  // `outputs` Y against Yhat = Q(X Tx^T) decoded^T, where Q quantizes as engines quantize the
  // activations of this format.
  virtual absl::StatusOr<OutputError> MeasureOutputError(Stream& stream, const NumberFormat& format,
                                                         const BlockTransform& transform,
                                                         const DeviceTensor& decoded,
                                                         const DeviceTensor& sample,
                                                         const DeviceTensor& outputs) = 0;
  // sum_c A_cc B_cc over the columns, A = Tw Mw Tw^T with Mw = W^T W / R and B = Tx Mx Tx^T with Mx
  // the block's second moment: what the predicted loss is proportional to (WUSH, section 3).
  virtual absl::StatusOr<double> MeasureSpread(Stream& stream, const BlockTransform& transform,
                                               const DeviceTensor& weight,
                                               const DeviceTensor& block_moment) = 0;

  // The given rows and columns of a matrix, in this order; an empty list stands for all.
  virtual absl::StatusOr<DeviceTensor> Submatrix(Stream& stream, const DeviceTensor& matrix,
                                                 absl::Span<const int64_t> rows,
                                                 absl::Span<const int64_t> columns) = 0;
  // The diagonal of a square matrix.
  virtual absl::StatusOr<std::vector<double>> Diagonal(Stream& stream,
                                                       const DeviceTensor& matrix) = 0;
  // Mean square of each column: C.
  virtual absl::StatusOr<std::vector<double>> ColumnEnergies(Stream& stream,
                                                             const DeviceTensor& matrix) = 0;
  // Mean square of each row: R.
  virtual absl::StatusOr<std::vector<double>> RowEnergies(Stream& stream,
                                                          const DeviceTensor& matrix) = 0;
  // FAILED_PRECONDITION where M + added I is not positive definite in float64, INVALID_ARGUMENT
  // where M is not symmetric to 1e-6 of its diagonal.
  virtual absl::StatusOr<MomentFactor> FactorMoment(Stream& stream, const DeviceTensor& moment,
                                                    double added) = 0;
  // Eigenvalues of a symmetric matrix, ascending.
  virtual absl::StatusOr<std::vector<double>> Eigenvalues(Stream& stream,
                                                          const DeviceTensor& matrix) = 0;

  virtual absl::StatusOr<LatticeProblem> PrepareLattice(Stream& stream,
                                                        const LatticeInputs& inputs) = 0;
  // ZSIC with LMMSE shrinkage at spacing c. OUT_OF_RANGE where a code leaves +-2^30.
  virtual absl::StatusOr<LatticeCodes> CancelSuccessively(Stream& stream,
                                                          const MomentFactor& factor,
                                                          const DeviceTensor& target,
                                                          double spacing) = 0;
  // What the entropy code of rows [first, first + rows) of Z, those of one layer, is chosen by.
  virtual absl::StatusOr<CodeCounts> CountCodes(Stream& stream, const DeviceTensor& codes,
                                                int64_t first, int64_t rows) = 0;
  // These rows under the model of their counts: the bytes of EncodeIntegers, which says the errors.
  virtual absl::StatusOr<CodedIntegers> EncodeCodes(Stream& stream, const DeviceTensor& codes,
                                                    int64_t first, int64_t rows,
                                                    const CodingModel& model) = 0;
  // What EncodeCodes stored: rows x cols, I32. Data of untrusted origin, as DecodeIntegers takes
  // it, with its errors.
  virtual absl::StatusOr<DeviceTensor> DecodeCodes(Stream& stream, const CodedIntegersView& coded,
                                                   int64_t rows, int64_t cols) = 0;
  // Alternates column and row rescalers from t = 1, g = gamma until the loss settles; a round that
  // raises it is undone. `spacing`: alpha, C.
  virtual absl::StatusOr<LatticeScales> FitLatticeScales(Stream& stream,
                                                         const LatticeProblem& problem,
                                                         const LatticeCodes& codes,
                                                         const std::vector<double>& spacing) = 0;
  // The row scales t that minimize the loss for given column scales.
  virtual absl::StatusOr<std::vector<double>> FitRowScales(
      Stream& stream, const LatticeProblem& problem, const DeviceTensor& codes,
      const std::vector<double>& column_scale) = 0;
  // What = diag(t) Z diag(s), R x cols. Column i of Z is column columns[i] of What; an empty list
  // stands for all, columns not in it are 0.
  virtual absl::StatusOr<DeviceTensor> DecodeLattice(Stream& stream, const DeviceTensor& codes,
                                                     const std::vector<double>& row_scale,
                                                     const std::vector<double>& column_scale,
                                                     absl::Span<const int64_t> columns,
                                                     int64_t cols) = 0;
  // Of y = W x against yhat = What xhat: E||y - yhat||^2 and E||y||^2, from the moments of drift.
  virtual absl::StatusOr<OutputError> MeasureDriftError(Stream& stream, const DeviceTensor& weight,
                                                        const DeviceTensor& dequantized,
                                                        const DeviceTensor& moment,
                                                        const DeviceTensor& moment_hat,
                                                        const DeviceTensor& cross) = 0;
};

// The stored form of a quantized weight on the host.
absl::StatusOr<EncodedMatrix> DownloadEncoded(Backend& backend, Stream& stream,
                                              const QuantizedWeight& quantized);

}  // namespace quantd::compute
