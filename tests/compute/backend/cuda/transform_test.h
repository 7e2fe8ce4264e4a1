#pragma once

#include <vector>

#include "compute/backend/cuda/cuda_stream.h"
#include "compute/backend/cuda/device_memory.h"
#include "tests/compute/backend/cuda/cuda_test.h"

namespace quantd::compute {

// Both devices under the same transforms: the CPU's.
class CudaTransformTest : public CudaTest {
 protected:
  BlockTransform Solve(TransformKind kind, int64_t size, const Tensor& weight) {
    TransformProblem problem;
    problem.kind = kind;
    problem.block_size = size;
    problem.seed = 3;
    problem.weight = cpu_.Upload(weight);
    if (kind == TransformKind::kWus || kind == TransformKind::kWush) {
      problem.second_moment = cpu_.Upload(DiagonalBlocks(RandomMoment(weight.dim(1), 5), size));
    }
    return cpu_.backend->SolveTransforms(*cpu_.stream, problem).value().transform;
  }
  BlockTransform ToCuda(const BlockTransform& transform) {
    if (transform.identity) return transform;
    return {.block_size = transform.block_size, .tx = Copy(transform.tx), .tw = Copy(transform.tw)};
  }

 private:
  // As it is: Upload would widen it.
  DeviceTensor Copy(const DeviceTensor& from) {
    const Tensor host = cpu_.backend->Download(*cpu_.stream, from).value();
    auto& stream = static_cast<CudaStream&>(*cuda_.stream);
    const NewTensor<std::byte> to =
        NewDeviceTensor<std::byte>(stream, host.dtype(), host.shape()).value();
    EXPECT_TRUE(CopyToDevice<std::byte>(stream, host.bytes(), to.data).ok());
    return to.tensor;
  }
};

}  // namespace quantd::compute
