#pragma once

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"

namespace quantd::compute {

// The ops of Backend that count, encode and decode codes: the same counts, bytes and codes as the
// CPU's.
absl::StatusOr<CodeCounts> CudaCountCodes(CudaStream& stream, const DeviceTensor& codes,
                                          int64_t first, int64_t rows);
absl::StatusOr<CodedIntegers> CudaEncodeCodes(CudaStream& stream, const DeviceTensor& codes,
                                              int64_t first, int64_t rows,
                                              const CodingModel& model);
absl::StatusOr<DeviceTensor> CudaDecodeCodes(CudaStream& stream, const CodedIntegersView& coded,
                                             int64_t rows, int64_t cols);

}  // namespace quantd::compute
