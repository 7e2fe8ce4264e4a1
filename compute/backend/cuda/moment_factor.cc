#include "compute/backend/cuda/moment_factor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/matrix.h"
#include "compute/backend/cuda/matrix_kernels.h"

namespace quantd::compute {
namespace {

constexpr double kMaxAsymmetry = 1e-6;  // of the diagonal entries that an entry belongs to

// What cuSOLVER's 64-bit routines are called with; its parameters carry no state of a call.
class SolverParameters {
 public:
  SolverParameters() { code_ = cusolverDnCreateParams(&params_); }
  ~SolverParameters() {
    if (params_ != nullptr) cusolverDnDestroyParams(params_);
  }
  SolverParameters(const SolverParameters&) = delete;
  SolverParameters& operator=(const SolverParameters&) = delete;
  cusolverStatus_t code() const { return code_; }
  cusolverDnParams_t get() const { return params_; }

 private:
  cusolverDnParams_t params_ = nullptr;
  cusolverStatus_t code_;
};

// Scratch of a cuSOLVER routine on both sides, and where it says how it went.
struct Workspace {
  DeviceBuffer<std::byte> device;
  std::vector<std::byte> host;
  DeviceBuffer<int> info;

  static absl::StatusOr<Workspace> Allocate(CudaStream& stream, size_t device_bytes,
                                            size_t host_bytes) {
    auto device = DeviceBuffer<std::byte>::Allocate(stream, static_cast<int64_t>(device_bytes));
    if (!device.ok()) return device.status();
    auto info = DeviceBuffer<int>::Allocate(stream, 1);
    if (!info.ok()) return info.status();
    return Workspace{*std::move(device), std::vector<std::byte>(host_bytes), *std::move(info)};
  }
  absl::StatusOr<int> Info(CudaStream& stream) const {
    absl::StatusOr<std::vector<int>> value = CopyToHost(stream, info.data(), 1);
    if (!value.ok()) return value.status();
    return value->front();
  }
};

absl::Status CheckSymmetric(CudaStream& stream, const DeviceTensor& moment) {
  const int64_t size = moment.dim(0);
  auto found = DeviceBuffer<unsigned long long>::Allocate(stream, 1);
  if (!found.ok()) return found.status();
  const double* m = DeviceData<double>(moment);
  absl::Status status = ToStatus(LaunchFindAsymmetry(stream.get(), size, m, kMaxAsymmetry,
                                                     /*geometric=*/false, found->data()),
                                 "comparing the second moment with its mirror");
  if (!status.ok()) return status;
  const auto at = CopyToHost(stream, found->data(), 1);
  if (!at.ok()) return at.status();
  const auto index = static_cast<int64_t>(at->front());
  if (index == size * size) return absl::OkStatus();
  const int64_t i = index / size;
  const int64_t j = index % size;
  const auto value = CopyToHost(stream, m + i * size + j, 1);
  if (!value.ok()) return value.status();
  const auto mirror = CopyToHost(stream, m + j * size + i, 1);
  if (!mirror.ok()) return mirror.status();
  return absl::InvalidArgumentError(absl::StrCat("second_moment: expected a symmetric matrix; got ",
                                                 value->front(), " at (", i, ", ", j, ") and ",
                                                 mirror->front(), " across the diagonal"));
}

}  // namespace

// cuSOLVER counts columns first: our lower triangle is its upper one, and L its U^T.
absl::StatusOr<bool> CudaCholesky(CudaStream& stream, int64_t size, double* matrix) {
  if (size == 0) return true;
  const SolverParameters parameters;
  absl::Status status = ToStatus(parameters.code(), "cuSOLVER parameters");
  if (!status.ok()) return status;
  size_t device_bytes = 0;
  size_t host_bytes = 0;
  status = ToStatus(
      cusolverDnXpotrf_bufferSize(stream.solver(), parameters.get(), CUBLAS_FILL_MODE_UPPER, size,
                                  CUDA_R_64F, matrix, size, CUDA_R_64F, &device_bytes, &host_bytes),
      "Cholesky workspace");
  if (!status.ok()) return status;
  absl::StatusOr<Workspace> work = Workspace::Allocate(stream, device_bytes, host_bytes);
  if (!work.ok()) return work.status();
  status =
      ToStatus(cusolverDnXpotrf(stream.solver(), parameters.get(), CUBLAS_FILL_MODE_UPPER, size,
                                CUDA_R_64F, matrix, size, CUDA_R_64F, work->device.data(),
                                device_bytes, work->host.data(), host_bytes, work->info.data()),
               "Cholesky factorization");
  if (!status.ok()) return status;
  const absl::StatusOr<int> info = work->Info(stream);
  if (!info.ok()) return info.status();
  if (*info < 0) {
    return absl::InternalError(absl::StrCat("Cholesky factorization: argument ", -*info));
  }
  return *info == 0;
}

absl::StatusOr<MomentFactor> CudaFactorMoment(CudaStream& stream, const DeviceTensor& moment,
                                              double added) {
  if (absl::Status status = CheckSymmetric(stream, moment); !status.ok()) return status;
  const int64_t size = moment.dim(0);
  absl::StatusOr<NewTensor<double>> lower = NewDoubles(stream, {size, size});
  if (!lower.ok()) return lower.status();
  absl::Status status = ToStatus(
      LaunchLowerPlusDiagonal(stream.get(), size, DeviceData<double>(moment), added, lower->data),
      "damping the second moment");
  if (!status.ok()) return status;
  const absl::StatusOr<bool> definite = CudaCholesky(stream, size, lower->data);
  if (!definite.ok()) return definite.status();
  if (!*definite) {
    return absl::FailedPreconditionError(absl::StrCat("second_moment: not positive definite with ",
                                                      added, " added to its diagonal"));
  }
  status = ToStatus(LaunchClearUpper(stream.get(), size, lower->data), "Cholesky factor");
  if (!status.ok()) return status;
  MomentFactor factor = {.lower = std::move(lower->tensor), .diagonal = {}, .added = added};
  absl::StatusOr<std::vector<double>> diagonal = CudaDiagonal(stream, factor.lower);
  if (!diagonal.ok()) return diagonal.status();
  factor.diagonal = *std::move(diagonal);
  return factor;
}

absl::StatusOr<std::vector<double>> CudaEigenvalues(CudaStream& stream,
                                                    const DeviceTensor& matrix) {
  const int64_t size = matrix.dim(0);
  if (size == 0) return std::vector<double>();
  auto copy = DeviceBuffer<double>::Allocate(stream, size * size + size);
  if (!copy.ok()) return copy.status();
  double* const a = copy->data();
  double* const values = a + size * size;
  absl::Status status = ToStatus(cudaMemcpyAsync(a, DeviceData<double>(matrix),
                                                 static_cast<size_t>(size * size) * sizeof(double),
                                                 cudaMemcpyDeviceToDevice, stream.get()),
                                 "eigenvalues");
  if (!status.ok()) return status;
  const SolverParameters parameters;
  status = ToStatus(parameters.code(), "cuSOLVER parameters");
  if (!status.ok()) return status;
  size_t device_bytes = 0;
  size_t host_bytes = 0;
  status = ToStatus(
      cusolverDnXsyevd_bufferSize(stream.solver(), parameters.get(), CUSOLVER_EIG_MODE_NOVECTOR,
                                  CUBLAS_FILL_MODE_UPPER, size, CUDA_R_64F, a, size, CUDA_R_64F,
                                  values, CUDA_R_64F, &device_bytes, &host_bytes),
      "eigenvalue workspace");
  if (!status.ok()) return status;
  absl::StatusOr<Workspace> work = Workspace::Allocate(stream, device_bytes, host_bytes);
  if (!work.ok()) return work.status();
  status = ToStatus(cusolverDnXsyevd(stream.solver(), parameters.get(), CUSOLVER_EIG_MODE_NOVECTOR,
                                     CUBLAS_FILL_MODE_UPPER, size, CUDA_R_64F, a, size, CUDA_R_64F,
                                     values, CUDA_R_64F, work->device.data(), device_bytes,
                                     work->host.data(), host_bytes, work->info.data()),
                    "eigenvalues");
  if (!status.ok()) return status;
  const absl::StatusOr<int> info = work->Info(stream);
  if (!info.ok()) return info.status();
  if (*info != 0) return absl::InternalError("eigenvalues: the iteration did not converge");
  return CopyToHost(stream, values, size);
}

}  // namespace quantd::compute
