// Moving matrices, reading them off and factoring moments: CUDA against the CPU.
#include <gmock/gmock.h>

#include "tests/compute/backend/cuda/cuda_test.h"

namespace quantd::compute {
namespace {

using testing::HasSubstr;

class CudaMatrixTest : public CudaTest {};

TEST_F(CudaMatrixTest, WidensEveryFloatDtypeExactly) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    Tensor tensor = Tensor::Create(dtype, {37, 96}).value();
    std::mt19937 bits(5);
    for (std::byte& byte : tensor.bytes()) byte = static_cast<std::byte>(bits() & 0x3f);
    EXPECT_EQ(cuda_.Values(cuda_.Upload(tensor)), cpu_.Values(cpu_.Upload(tensor)))
        << NameOf(dtype);
  }
}

TEST_F(CudaMatrixTest, RefusesWhatIsNoFloat) {
  const Tensor codes = Tensor::Create(DType::kI32, {2, 2}).value();
  EXPECT_EQ(cuda_.backend->Upload(*cuda_.stream, codes).status(),
            cpu_.backend->Upload(*cpu_.stream, codes).status());
}

TEST_F(CudaMatrixTest, SlicesAndGathers) {
  const Tensor w = Random({75, 131}, 1);
  const std::vector<int64_t> rows = {70, 3, 3, 0};
  const std::vector<int64_t> columns = {130, 0, 64};
  const auto read = [&](Side& side) {
    const DeviceTensor m = side.Upload(w);
    std::vector<std::vector<double>> all;
    for (const DeviceTensor& part :
         {side.backend->SliceRows(*side.stream, m, 5, 66).value(),
          side.backend->Submatrix(*side.stream, m, rows, columns).value(),
          side.backend->Submatrix(*side.stream, m, {}, columns).value(),
          side.backend->Submatrix(*side.stream, m, rows, {}).value()}) {
      all.push_back(side.Values(part));
    }
    return all;
  };
  EXPECT_EQ(read(cuda_), read(cpu_));
}

TEST_F(CudaMatrixTest, DiagonalAndEnergies) {
  const Tensor m = Random({131, 131}, 2);
  EXPECT_EQ(cuda_.backend->Diagonal(*cuda_.stream, cuda_.Upload(m)).value(),
            cpu_.backend->Diagonal(*cpu_.stream, cpu_.Upload(m)).value());
  const Tensor w = Random({517, 131}, 3);
  EXPECT_LT(RelativeDistance(cuda_.backend->ColumnEnergies(*cuda_.stream, cuda_.Upload(w)).value(),
                             cpu_.backend->ColumnEnergies(*cpu_.stream, cpu_.Upload(w)).value()),
            1e-14);
  EXPECT_LT(RelativeDistance(cuda_.backend->RowEnergies(*cuda_.stream, cuda_.Upload(w)).value(),
                             cpu_.backend->RowEnergies(*cpu_.stream, cpu_.Upload(w)).value()),
            1e-14);
}

TEST_F(CudaMatrixTest, FactorsAndEigenvalues) {
  for (const int64_t size : {1, 37, 256, 515}) {
    const Tensor m = RandomMoment(size, 4);
    const auto cpu = cpu_.backend->FactorMoment(*cpu_.stream, cpu_.Upload(m), 0.1).value();
    const auto cuda = cuda_.backend->FactorMoment(*cuda_.stream, cuda_.Upload(m), 0.1).value();
    EXPECT_LT(RelativeDistance(cuda_.Values(cuda.lower), cpu_.Values(cpu.lower)), 1e-11) << size;
    EXPECT_LT(RelativeDistance(cuda.diagonal, cpu.diagonal), 1e-11) << size;
    EXPECT_EQ(cuda.added, 0.1);
    EXPECT_LT(RelativeDistance(cuda_.backend->Eigenvalues(*cuda_.stream, cuda_.Upload(m)).value(),
                               cpu_.backend->Eigenvalues(*cpu_.stream, cpu_.Upload(m)).value()),
              1e-11)
        << size;
  }
}

TEST_F(CudaMatrixTest, RefusesMomentsThatAreNone) {
  Tensor indefinite = RandomMoment(64, 5);
  indefinite.as<double>()[0] = -1.0;
  EXPECT_EQ(
      cuda_.backend->FactorMoment(*cuda_.stream, cuda_.Upload(indefinite), 0.0).status().code(),
      absl::StatusCode::kFailedPrecondition);
  Tensor crooked = RandomMoment(64, 6);
  crooked.as<double>()[50 * 64 + 7] += 1.0;
  const absl::Status refused =
      cuda_.backend->FactorMoment(*cuda_.stream, cuda_.Upload(crooked), 0.0).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("at (50, 7)"));
}

TEST_F(CudaMatrixTest, MeansOfStatistics) {
  const Tensor x = Random({300, 96}, 10, DType::kF32);
  for (const MomentSpec& spec :
       {MomentSpec{.cols = 96},
        MomentSpec{.layout = MomentLayout::kBlockDiagonal, .block_size = 48, .cols = 96}}) {
    const auto accumulator = cpu_.backend->NewAccumulator(spec, nullptr).value();
    ASSERT_TRUE(accumulator->Add("test", 0, DType::kF32, 300, x.bytes()).ok());
    SecondMoment moment = accumulator->Snapshot().value();  // with pending rows, then without
    for (int round = 0; round < 2; ++round) {
      const auto means = [&](Side& side) {
        const DeviceTensor mean = side.backend->UploadMean(*side.stream, moment).value();
        const DeviceTensor blocks = side.backend->DiagonalBlocks(*side.stream, mean, 16).value();
        EXPECT_EQ(blocks.shape(), (std::vector<int64_t>{6, 16, 16}));
        return std::pair(side.Values(mean), side.Values(blocks));
      };
      EXPECT_EQ(means(cuda_), means(cpu_));
      moment.FoldPending();
    }
  }
  const SecondMoment nothing = SecondMoment::Create({.cols = 96}).value();
  EXPECT_EQ(cuda_.backend->UploadMean(*cuda_.stream, nothing).status(),
            cpu_.backend->UploadMean(*cpu_.stream, nothing).status());
}

TEST_F(CudaMatrixTest, CountsMemoryAndSurvivesRunningOut) {
  const DeviceTensor held = cuda_.Upload(Random({64, 64}, 7));
  EXPECT_GE(cuda_.stream->peak_bytes(), 64 * 64 * 8);
  const DeviceInfo info = cuda_.backend->Describe();
  EXPECT_EQ(info.name, "cuda:0");
  EXPECT_GT(info.memory_bytes, 0);
  // Gathers a row so often that no device holds it.
  const DeviceTensor row = cuda_.Upload(Random({1, 1 << 16}, 8));
  const std::vector<int64_t> often((int64_t{1} << 21), 0);
  const absl::Status refused = cuda_.backend->Submatrix(*cuda_.stream, row, often, {}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_EQ(cuda_.Values(held).size(), 64 * 64);
  EXPECT_TRUE(cuda_.stream->Synchronize().ok());
}

TEST_F(CudaMatrixTest, ACancelledStreamRefusesOps) {
  CancelFlag cancel;
  const auto stream = cuda_.backend->NewStream(&cancel).value();
  cancel.Cancel();
  EXPECT_EQ(cuda_.backend->Upload(*stream, Random({2, 2}, 9)).status().code(),
            absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace quantd::compute
