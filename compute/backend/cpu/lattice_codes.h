#pragma once

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// The ops of Backend that count and encode codes, on the CPU. Operands were checked.
absl::StatusOr<CodeCounts> CpuCountCodes(WorkerPool& pool, Stream& stream,
                                         const DeviceTensor& codes, int64_t first, int64_t rows);
absl::StatusOr<CodedIntegers> CpuEncodeCodes(Stream& stream, const DeviceTensor& codes,
                                             int64_t first, int64_t rows, const CodingModel& model);
absl::StatusOr<DeviceTensor> CpuDecodeCodes(Stream& stream, const CodedIntegersView& coded,
                                            int64_t rows, int64_t cols);

}  // namespace quantd::compute
