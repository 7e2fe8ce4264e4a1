#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cusolverDn.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace quantd::compute {

// What a CUDA call said, with `what` was being done: OK, RESOURCE_EXHAUSTED where device memory is
// short, INTERNAL for everything else. Clears the error that the runtime remembers for this thread,
// so that the next call does not report it again.
absl::Status ToStatus(cudaError_t code, absl::string_view what);
absl::Status ToStatus(cublasStatus_t code, absl::string_view what);
absl::Status ToStatus(cusolverStatus_t code, absl::string_view what);

}  // namespace quantd::compute
