#include <cuda_runtime_api.h>

#include <cstring>
#include <string>

#include "compute/backend/cuda/cuda_backend.h"
#include "gtest/gtest.h"

// Memory of another process is read in tests/end_to_end/test_cuda_ipc.py: a process cannot open
// what it exported itself.
namespace quantd::compute {
namespace {

constexpr int64_t kBytes = int64_t{2} << 20;

absl::StatusCode Opened(Backend& backend, absl::string_view handle) {
  return backend.OpenRegion(handle, kBytes).status().code();
}

TEST(IpcRegionTest, WhatDoesNotOpenIsRefusedAndTheDeviceGoesOn) {
  const auto backend = NewCudaBackend(0, 1).value();
  EXPECT_EQ(Opened(*backend, ""), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Opened(*backend, std::string(65, 'x')), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Opened(*backend, std::string(64, '\0')), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Opened(*backend, std::string(64, 'x')), absl::StatusCode::kFailedPrecondition);

  void* own = nullptr;
  ASSERT_EQ(cudaMalloc(&own, kBytes), cudaSuccess);
  cudaIpcMemHandle_t handle;
  ASSERT_EQ(cudaIpcGetMemHandle(&handle, own), cudaSuccess);
  EXPECT_EQ(Opened(*backend, absl::string_view(handle.reserved, sizeof(handle.reserved))),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cudaFree(own), cudaSuccess);
  EXPECT_TRUE(backend->NewStream(nullptr).value()->Synchronize().ok());
}

}  // namespace
}  // namespace quantd::compute
