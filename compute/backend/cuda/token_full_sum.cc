#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include "compute/backend/cuda/cuda_event.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/gram_kernels.h"
#include "compute/backend/cuda/gram_sum.h"
#include "compute/backend/cuda/token_rows.h"
#include "compute/backend/cuda/token_sums.h"
#include "compute/backend/cuda/token_transfer.h"
#include "compute/backend/token_precision.h"
#include "compute/second_moment/second_moment.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {
namespace {

constexpr int64_t kRowGrain = 16;  // rows a thread converts at a time

// Slices that are gathered before they are multiplied: a sum is read and written once for all of
// them.
constexpr int64_t kGatheredBytes = int64_t{128} << 20;
constexpr int64_t kMostGathered = 8;

// Slices of bfloat16 on the device, in two halves: one gathers while the other is multiplied.
class NarrowSlices {
 public:
  NarrowSlices(TokenTransfer& transfer, WorkerPool& pool, int64_t cols)
      : transfer_(transfer),
        pool_(pool),
        cols_(cols),
        pitch_(CudaGramSum::PitchOf(cols)),
        most_(std::clamp<int64_t>(kGatheredBytes / SliceBytes(), 1, kMostGathered)) {}
  ~NarrowSlices() {
    // Memory is freed in the order of the compute stream.
    static_cast<void>(transfer_.ComputeAfterCopies());
  }

  int64_t gathered() const { return gathered_; }
  bool full() const { return gathered_ == most_; }
  // The gathered slices, and behind them the open one.
  const uint16_t* slices() const { return halves_[half_].data(); }
  const uint16_t* open() const { return slices() + gathered_ * kSliceTokens * pitch_; }
  int64_t pitch() const { return pitch_; }

  // Writes rows of the open slice from row `first` on, until one is no moderate bfloat16: the rows
  // written.
  absl::StatusOr<int64_t> Write(int64_t first, DType dtype, const std::byte* rows, int64_t count) {
    if (absl::Status status = Open(); !status.ok()) return status;
    const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
    const int64_t piece = std::max<int64_t>(PinnedRing::kSlotBytes / (pitch_ * 2), 1);
    for (int64_t done = 0; done < count;) {
      const int64_t some = std::min(piece, count - done);
      uint16_t* const to =
          halves_[half_].data() + (gathered_ * kSliceTokens + first + done) * pitch_;
      absl::StatusOr<bool> sent = transfer_.SendFilled(some * pitch_ * 2, to, [&](std::byte* slot) {
        return Narrow(dtype, rows + done * row_bytes, some, reinterpret_cast<uint16_t*>(slot));
      });
      if (!sent.ok()) return sent.status();
      if (!*sent) return done;
      done += some;
    }
    return count;
  }

  void CloseSlice() { ++gathered_; }

  // After the gathered slices were multiplied on the compute stream: begins again with the
  // first `rows` rows of the open slice.
  absl::Status Restart(int64_t rows) {
    absl::Status status = multiplied_[half_].Record(transfer_.compute().get());
    if (!status.ok()) return status;
    const uint16_t* const kept = open();
    half_ = 1 - half_;
    gathered_ = 0;
    if (halves_[half_].data() != nullptr) {
      status = multiplied_[half_].HoldUp(transfer_.copies());
      if (!status.ok()) return status;
    }
    if (rows == 0) return absl::OkStatus();
    if (status = Open(); !status.ok()) return status;
    return ToStatus(cudaMemcpyAsync(halves_[half_].data(), kept,
                                    static_cast<size_t>(rows * pitch_) * sizeof(uint16_t),
                                    cudaMemcpyDeviceToDevice, transfer_.copies()),
                    "keeping the open slice");
  }

 private:
  int64_t SliceBytes() const { return kSliceTokens * pitch_ * 2; }

  absl::Status Open() {
    if (halves_[half_].data() != nullptr) return absl::OkStatus();
    auto half =
        DeviceBuffer<uint16_t>::Allocate(transfer_.compute(), most_ * kSliceTokens * pitch_);
    if (!half.ok()) return half.status();
    halves_[half_] = *std::move(half);
    absl::StatusOr<CudaEvent> multiplied = CudaEvent::Create();
    if (!multiplied.ok()) return multiplied.status();
    multiplied_[half_] = *std::move(multiplied);
    return transfer_.CopiesAfterCompute();
  }

  bool Narrow(DType dtype, const std::byte* rows, int64_t count, uint16_t* to) {
    const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
    std::atomic<bool> fits{true};
    pool_.ParallelFor(0, count, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end && fits.load(std::memory_order_relaxed); ++row) {
        uint16_t* const row_to = to + row * pitch_;
        std::fill(row_to + cols_, row_to + pitch_, uint16_t{0});
        if (!NarrowToModerateBf16(dtype, rows + row * row_bytes, cols_, row_to)) {
          fits.store(false, std::memory_order_relaxed);
        }
      }
    });
    return fits.load(std::memory_order_relaxed);
  }

  TokenTransfer& transfer_;
  WorkerPool& pool_;
  const int64_t cols_;
  const int64_t pitch_;
  const int64_t most_;  // slices in a half
  int half_ = 0;
  int64_t gathered_ = 0;
  std::array<DeviceBuffer<uint16_t>, 2> halves_;
  std::array<CudaEvent, 2> multiplied_;
};

class CudaFullSum final : public TokenSum {
 public:
  CudaFullSum(std::unique_ptr<TokenTransfer> transfer, WorkerPool& pool, int64_t cols,
              std::unique_ptr<CudaGramSum> sum)
      : transfer_(std::move(transfer)),
        cols_(cols),
        sum_(std::move(sum)),
        narrow_(*transfer_, pool, cols),
        wide_(*transfer_, cols) {}

  int64_t rows() const override { return rows_; }

  absl::Status Append(DType dtype, const std::byte* rows, const std::byte* /*paired*/,
                      int64_t count) override {
    if (absl::Status status = transfer_->Enter(); !status.ok()) return status;
    int64_t done = 0;
    if (!is_wide_) {
      absl::StatusOr<int64_t> written = narrow_.Write(rows_, dtype, rows, count);
      if (!written.ok()) return written.status();
      done = *written;
      rows_ += done;
      if (done == count) return absl::OkStatus();
      if (absl::Status status = Widen(); !status.ok()) return status;
    }
    const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
    absl::Status status = wide_.Write(rows_, dtype, rows + done * row_bytes, count - done);
    rows_ += count - done;
    return status;
  }

  absl::Status Resume(absl::Span<const double> rows) override {
    if (rows.empty()) return absl::OkStatus();
    return Append(DType::kF64, reinterpret_cast<const std::byte*>(rows.data()), nullptr,
                  static_cast<int64_t>(rows.size()) / cols_);
  }

  absl::Status Fold() override {
    if (absl::Status status = transfer_->Enter(); !status.ok()) return status;
    absl::Status status;
    if (is_wide_) {
      status = FoldWide();
    } else {
      narrow_.CloseSlice();
      if (narrow_.full()) status = MultiplyGathered(0);
    }
    rows_ = 0;
    is_wide_ = false;
    return status;
  }

  absl::StatusOr<std::vector<double>> Sum() override {
    if (absl::Status status = transfer_->Enter(); !status.ok()) return status;
    absl::Status status = MultiplyGathered(is_wide_ ? 0 : rows_);
    if (!status.ok()) return status;
    return sum_->Sum();
  }

  absl::StatusOr<std::vector<double>> Rows() override {
    if (rows_ == 0) return std::vector<double>();
    absl::Status status = transfer_->Enter();
    if (status.ok()) status = transfer_->ComputeAfterCopies();
    if (!status.ok()) return status;
    CudaStream& compute = transfer_->compute();
    if (is_wide_) return CopyToHost(compute, wide_.rows(), rows_ * cols_);
    absl::StatusOr<std::vector<uint16_t>> narrow =
        CopyToHost(compute, narrow_.open(), rows_ * narrow_.pitch());
    if (!narrow.ok()) return narrow.status();
    std::vector<double> rows(rows_ * cols_);
    for (int64_t row = 0; row < rows_; ++row) {
      const auto* from = reinterpret_cast<const std::byte*>(narrow->data() + row * narrow_.pitch());
      ConvertToDouble(DType::kBF16, from, cols_, rows.data() + row * cols_);
    }
    return rows;
  }

 private:
  // The open slice goes on in float64.
  absl::Status Widen() {
    is_wide_ = true;
    if (absl::Status status = wide_.Open(); !status.ok()) return status;
    return ToStatus(LaunchWidenRows(transfer_->copies(), rows_, cols_, narrow_.pitch(),
                                    narrow_.open(), wide_.rows()),
                    "widening tokens");
  }

  // Slices are added in their order.
  absl::Status FoldWide() {
    if (absl::Status status = MultiplyGathered(0); !status.ok()) return status;
    if (absl::Status status = wide_.BeginFold(); !status.ok()) return status;
    if (absl::Status status = sum_->AddWide(wide_.rows()); !status.ok()) return status;
    return wide_.EndFold();
  }

  // `open_rows`: of the open slice, which are kept.
  absl::Status MultiplyGathered(int64_t open_rows) {
    if (narrow_.gathered() == 0) return absl::OkStatus();
    if (absl::Status status = transfer_->ComputeAfterCopies(); !status.ok()) return status;
    absl::Status status = sum_->AddNarrow(narrow_.slices(), narrow_.gathered());
    if (!status.ok()) return status;
    return narrow_.Restart(open_rows);
  }

  std::unique_ptr<TokenTransfer> transfer_;
  const int64_t cols_;
  std::unique_ptr<CudaGramSum> sum_;
  NarrowSlices narrow_;  // the open slice is here
  TokenRows wide_;       // or here
  bool is_wide_ = false;
  int64_t rows_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenSum>> NewCudaFullSum(CudaDevice& device, int64_t cols,
                                                         const std::vector<double>& start) {
  absl::StatusOr<std::unique_ptr<TokenTransfer>> transfer = TokenTransfer::Create(device);
  if (!transfer.ok()) return transfer.status();
  absl::StatusOr<CudaGramSum::Products> products = CudaGramSum::ChooseProducts(device.id());
  if (!products.ok()) return products.status();
  absl::StatusOr<std::unique_ptr<CudaGramSum>> sum =
      CudaGramSum::Create((*transfer)->compute(), *products, cols, start);
  if (!sum.ok()) return sum.status();
  return std::make_unique<CudaFullSum>(*std::move(transfer), device.pool(), cols, *std::move(sum));
}

}  // namespace quantd::compute
