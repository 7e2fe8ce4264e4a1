#include "compute/backend/cuda/cuda_status.h"

#include "absl/strings/str_cat.h"

namespace quantd::compute {
namespace {

absl::Status Failure(bool out_of_memory, absl::string_view what, absl::string_view why) {
  const std::string message = absl::StrCat(what, ": ", why);
  return out_of_memory ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

}  // namespace

absl::Status ToStatus(cudaError_t code, absl::string_view what) {
  if (code == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  return Failure(code == cudaErrorMemoryAllocation, what,
                 absl::StrCat(cudaGetErrorName(code), " (", cudaGetErrorString(code), ")"));
}

absl::Status ToStatus(cublasStatus_t code, absl::string_view what) {
  if (code == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return Failure(code == CUBLAS_STATUS_ALLOC_FAILED, what, cublasGetStatusName(code));
}

absl::Status ToStatus(cusolverStatus_t code, absl::string_view what) {
  if (code == CUSOLVER_STATUS_SUCCESS) return absl::OkStatus();
  return Failure(code == CUSOLVER_STATUS_ALLOC_FAILED, what,
                 absl::StrCat("cuSOLVER error ", static_cast<int>(code)));
}

}  // namespace quantd::compute
