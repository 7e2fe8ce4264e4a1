#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend/cpu/worker_pool.h"
#include "compute/formats/number_format.h"

namespace quantd::compute {

// Room for the codes and scales of a rows x cols matrix. RESOURCE_EXHAUSTED.
absl::StatusOr<EncodedMatrix> NewEncoded(const NumberFormat& format, int64_t rows, int64_t cols);

// Codes (one byte an element) and scales (the values that they decode to), both row-major, as they
// are stored.
absl::StatusOr<EncodedMatrix> EncodeMatrix(WorkerPool& pool, const NumberFormat& format,
                                           int64_t rows, int64_t cols, std::optional<float> global,
                                           absl::Span<const uint8_t> codes,
                                           absl::Span<const double> scales);

}  // namespace quantd::compute
