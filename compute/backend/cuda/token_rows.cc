#include "compute/backend/cuda/token_rows.h"

#include <algorithm>
#include <utility>

#include "compute/backend/cuda/matrix.h"
#include "compute/second_moment/second_moment.h"

namespace quantd::compute {
TokenRows::~TokenRows() {
  // Memory is freed in the order of the compute stream.
  static_cast<void>(transfer_.ComputeAfterCopies());
}

absl::Status TokenRows::Open() {
  if (slices_[open_].data() != nullptr) return absl::OkStatus();
  auto slice = DeviceBuffer<double>::Allocate(transfer_.compute(), kSliceTokens * width_);
  if (!slice.ok()) return slice.status();
  slices_[open_] = *std::move(slice);
  absl::StatusOr<CudaEvent> folded = CudaEvent::Create();
  if (!folded.ok()) return folded.status();
  folded_[open_] = *std::move(folded);
  if (narrow_.data() == nullptr) {
    auto narrow = DeviceBuffer<std::byte>::Allocate(transfer_.compute(), PinnedRing::kSlotBytes);
    if (!narrow.ok()) return narrow.status();
    narrow_ = *std::move(narrow);
  }
  return transfer_.CopiesAfterCompute();
}

absl::Status TokenRows::Write(int64_t first, DType dtype, const std::byte* rows, int64_t count) {
  if (absl::Status status = Open(); !status.ok()) return status;
  double* const to = slices_[open_].data() + first * width_;
  const auto element = static_cast<int64_t>(SizeOf(dtype));
  if (dtype == DType::kF64) return transfer_.Send(rows, count * width_ * element, to);
  const int64_t piece = PinnedRing::kSlotBytes / element;
  for (int64_t done = 0; done < count * width_; done += piece) {
    const int64_t some = std::min(piece, count * width_ - done);
    absl::Status status = transfer_.Send(rows + done * element, some * element, narrow_.data());
    if (!status.ok()) return status;
    status = QueueWiden(transfer_.copies(), dtype, narrow_.data(), some, to + done);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status TokenRows::EndFold() {
  absl::Status status = folded_[open_].Record(transfer_.compute().get());
  if (!status.ok()) return status;
  open_ = 1 - open_;
  if (slices_[open_].data() == nullptr) return absl::OkStatus();
  return folded_[open_].HoldUp(transfer_.copies());
}

}  // namespace quantd::compute
