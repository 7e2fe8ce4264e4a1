// Compiles a kernel and links cuBLAS and cuSOLVER. With a GPU it runs all three and fails when a
// result is wrong; without one it says so and succeeds, since compiling and linking is the proof.

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include <cstdio>
#include <vector>

namespace {

__global__ void AddOne(float* values, int count) {
  const int index = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (index < count) values[index] += 1.0f;
}

bool KernelRuns() {
  std::vector<float> host(1000, 41.0f);
  const size_t bytes = host.size() * sizeof(float);
  float* device = nullptr;
  if (cudaMalloc(reinterpret_cast<void**>(&device), bytes) != cudaSuccess) return false;
  cudaMemcpy(device, host.data(), bytes, cudaMemcpyHostToDevice);
  AddOne<<<4, 256>>>(device, static_cast<int>(host.size()));
  const cudaError_t copied = cudaMemcpy(host.data(), device, bytes, cudaMemcpyDeviceToHost);
  cudaFree(device);
  if (copied != cudaSuccess) return false;
  for (const float value : host) {
    if (value != 42.0f) return false;
  }
  return true;
}

bool CublasStarts() {
  cublasHandle_t handle = nullptr;
  return cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS &&
         cublasDestroy(handle) == CUBLAS_STATUS_SUCCESS;
}

bool CusolverStarts() {
  cusolverDnHandle_t handle = nullptr;
  return cusolverDnCreate(&handle) == CUSOLVER_STATUS_SUCCESS &&
         cusolverDnDestroy(handle) == CUSOLVER_STATUS_SUCCESS;
}

}  // namespace

int main() {
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("CUDA runtime %d: compiled and linked; no GPU here to run on\n", runtime);
    return 0;
  }
  const bool kernel = KernelRuns();
  const bool cublas = CublasStarts();
  const bool cusolver = CusolverStarts();
  std::printf("CUDA runtime %d, %d device(s): kernel %s, cuBLAS %s, cuSOLVER %s\n", runtime,
              devices, kernel ? "ok" : "FAILED", cublas ? "ok" : "FAILED",
              cusolver ? "ok" : "FAILED");
  return kernel && cublas && cusolver ? 0 : 1;
}
