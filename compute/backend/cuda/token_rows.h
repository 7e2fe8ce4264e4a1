#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/cuda_event.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/token_transfer.h"

namespace quantd::compute {

// Rows of the open slice in float64 on the device, row-major; the slice before may still be in use
// by the compute stream. Memory is taken when data comes. Used after TokenTransfer::Enter.
class TokenRows {
 public:
  // `transfer` must outlive it.
  TokenRows(TokenTransfer& transfer, int64_t width) : transfer_(transfer), width_(width) {}
  ~TokenRows();
  TokenRows(const TokenRows&) = delete;
  TokenRows& operator=(const TokenRows&) = delete;

  int64_t width() const { return width_; }
  // kSliceTokens x width of the open slice; written in the order of the copies.
  double* rows() const { return slices_[open_].data(); }

  // Makes room. Called by Write.
  absl::Status Open();
  // Rows [first, first + count) of the slice, from a float dtype. They fit.
  absl::Status Write(int64_t first, DType dtype, const std::byte* rows, int64_t count);
  // rows() may be read on the compute stream from here on.
  absl::Status BeginFold() { return transfer_.ComputeAfterCopies(); }
  // No more than what the compute stream holds reads rows(): opens another slice.
  absl::Status EndFold();

 private:
  TokenTransfer& transfer_;
  const int64_t width_;
  int open_ = 0;
  std::array<DeviceBuffer<double>, 2> slices_;
  std::array<CudaEvent, 2> folded_;
  DeviceBuffer<std::byte> narrow_;  // elements on their way to float64
};

}  // namespace quantd::compute
