// Block transforms: CUDA against the CPU, and what makes them WUSH.
#include <gmock/gmock.h>

#include "tests/compute/backend/cuda/cuda_test.h"

namespace quantd::compute {
namespace {

using testing::HasSubstr;

struct Shape {
  int64_t rows;
  int64_t cols;
  int64_t block;
};

TransformProblem ProblemOf(TransformKind kind, int64_t block_size,
                           Solver solver = Solver::kMarginal, double damping = 1e-2) {
  TransformProblem problem;
  problem.kind = kind;
  problem.solver = solver;
  problem.block_size = block_size;
  problem.damping = damping;
  problem.seed = 7;
  return problem;
}

class CudaSolveTransformsTest : public CudaTest {
 protected:
  static TransformSolution Solve(Side& side, TransformProblem p, const Tensor& weight,
                                 const Tensor& moment) {
    p.weight = side.Upload(weight);
    const bool whole = p.solver == Solver::kConditional;
    p.second_moment =
        whole ? side.Upload(moment) : side.Upload(DiagonalBlocks(moment, p.block_size));
    return side.backend->SolveTransforms(*side.stream, p).value();
  }

  void ExpectSame(const TransformProblem& p, const Tensor& weight, const Tensor& moment) {
    const TransformSolution cuda = Solve(cuda_, p, weight, moment);
    const TransformSolution cpu = Solve(cpu_, p, weight, moment);
    SCOPED_TRACE(testing::Message()
                 << weight.dim(0) << " x " << weight.dim(1) << ", blocks of " << p.block_size
                 << ", " << NameOf(p.kind) << " " << NameOf(p.solver));
    // Rounding to float32 alone may differ by 6e-8; the inverse multiplies that by the condition.
    EXPECT_LT(RelativeDistance(cuda_.Values(cuda.transform.tx), cpu_.Values(cpu.transform.tx)),
              2e-7);
    EXPECT_LT(RelativeDistance(cuda_.Values(cuda.transform.tw), cpu_.Values(cpu.transform.tw)),
              2e-7 * cpu.condition_max);
    EXPECT_EQ(cuda.trace.size(), cpu.trace.size());
    EXPECT_LT(RelativeDistance(cuda.trace, cpu.trace), 1e-10);
    EXPECT_NEAR(cuda.condition_max, cpu.condition_max, 1e-5 * cpu.condition_max);
    EXPECT_EQ(cuda.damped_blocks, cpu.damped_blocks);
    EXPECT_EQ(cuda.damping_max, cpu.damping_max);
    EXPECT_EQ(cuda.transform.block_size, cpu.transform.block_size);
    EXPECT_EQ(cuda_.Values(Solve(cuda_, p, weight, moment).transform.tw),
              cuda_.Values(cuda.transform.tw));
    ExpectInverse(cuda.transform);
  }

  // Tw^T Tx = I.
  void ExpectInverse(const BlockTransform& transform) {
    const std::vector<double> tx = cuda_.Values(transform.tx);
    const std::vector<double> tw = cuda_.Values(transform.tw);
    const int64_t n = transform.block_size;
    double worst = 0.0;
    for (size_t block = 0; block < tx.size(); block += n * n) {
      for (int64_t i = 0; i < n * n; ++i) {
        double sum = i / n == i % n ? -1.0 : 0.0;
        for (int64_t k = 0; k < n; ++k) {
          sum += tw[block + k * n + i / n] * tx[block + k * n + i % n];
        }
        worst = std::max(worst, std::abs(sum));
      }
    }
    EXPECT_LT(worst, 1e-8);
  }
};

TEST_F(CudaSolveTransformsTest, DataAware) {
  for (const Shape& shape : {Shape{37, 96, 32}, Shape{300, 64, 16}, Shape{130, 256, 64},
                             Shape{140, 256, 128}, Shape{2000, 64, 32}}) {
    const Tensor weight = Random({shape.rows, shape.cols}, 1);
    const Tensor moment = RandomMoment(shape.cols, 2);
    for (const TransformKind kind : {TransformKind::kWush, TransformKind::kWus}) {
      for (const Solver solver : {Solver::kMarginal, Solver::kConditional}) {
        ExpectSame(ProblemOf(kind, shape.block, solver), weight, moment);
      }
    }
  }
}

TEST_F(CudaSolveTransformsTest, BlocksThatAreNoPowerOfTwo) {
  const Tensor weight = Random({80, 150}, 3);
  const Tensor moment = RandomMoment(150, 4);
  for (const int64_t block : {3, 10, 25, 50, 75}) {
    for (const double damping : {1e-4, 1e-1}) {
      ExpectSame(ProblemOf(TransformKind::kWus, block, Solver::kMarginal, damping), weight, moment);
    }
  }
}

TEST_F(CudaSolveTransformsTest, DataFree) {
  const Tensor weight = Random({5, 256}, 5);
  const Tensor moment = RandomMoment(256, 6);
  for (const TransformKind kind : {TransformKind::kHadamard, TransformKind::kRandom}) {
    for (const int64_t block : {16, 32, 64, 128}) {
      ExpectSame(ProblemOf(kind, block), weight, moment);
    }
  }
  TransformProblem identity = ProblemOf(TransformKind::kIdentity, 32);
  identity.weight = cuda_.Upload(weight);
  EXPECT_TRUE(cuda_.backend->SolveTransforms(*cuda_.stream, identity).value().transform.identity);
}

// Tx Mx Tx^T = Tw Mw Tw^T of the damped moments.
TEST_F(CudaSolveTransformsTest, MarginalBalances) {
  constexpr int64_t kSize = 32;
  constexpr double kDamping = 1e-2;
  const Tensor weight = Random({300, kSize}, 8);
  const Tensor moment = RandomMoment(kSize, 9);
  const TransformSolution solved = Solve(
      cuda_, ProblemOf(TransformKind::kWush, kSize, Solver::kMarginal, kDamping), weight, moment);
  std::vector<double> mx(moment.as<double>().begin(), moment.as<double>().end());
  std::vector<double> mw(kSize * kSize);
  for (int64_t r = 0; r < 300; ++r) {
    const double* row = weight.as<double>().data() + r * kSize;
    for (int64_t i = 0; i < kSize * kSize; ++i) mw[i] += row[i / kSize] * row[i % kSize] / 300.0;
  }
  const auto transformed = [&](const DeviceTensor& by, std::vector<double> m) {
    double trace = 0.0;
    for (int64_t i = 0; i < kSize; ++i) trace += m[i * (kSize + 1)];
    for (int64_t i = 0; i < kSize; ++i) m[i * (kSize + 1)] += kDamping * trace / kSize;
    const std::vector<double> t = cuda_.Values(by);
    std::vector<double> product(kSize * kSize);
    for (int64_t i = 0; i < kSize * kSize; ++i) {
      for (int64_t k = 0; k < kSize * kSize; ++k) {
        product[i] += t[i / kSize * kSize + k / kSize] * m[k] * t[i % kSize * kSize + k % kSize];
      }
    }
    return product;
  };
  EXPECT_LT(
      RelativeDistance(transformed(solved.transform.tx, mx), transformed(solved.transform.tw, mw)),
      1e-5);
}

TEST_F(CudaSolveTransformsTest, DeadBlocksAndFewRows) {
  Tensor weight = Random({7, 96}, 10);
  Tensor moment = RandomMoment(96, 11);
  for (int64_t r = 0; r < 7; ++r) {
    for (int64_t c = 0; c < 32; ++c) weight.as<double>()[r * 96 + c] = 0.0;
  }
  for (int64_t i = 64; i < 96; ++i) {
    for (int64_t j = 0; j < 96; ++j) {
      moment.as<double>()[i * 96 + j] = moment.as<double>()[j * 96 + i] = 0.0;
    }
  }
  for (const Solver solver : {Solver::kMarginal, Solver::kConditional}) {
    SCOPED_TRACE(NameOf(solver));
    const TransformProblem p = ProblemOf(TransformKind::kWush, 32, solver);
    const TransformSolution cpu = Solve(cpu_, p, weight, moment);
    const TransformSolution cuda = Solve(cuda_, p, weight, moment);
    ExpectInverse(cuda.transform);
    for (size_t i = 0; i < cpu.trace.size(); ++i) {
      // Singular values of 0 are known to the root of what rounding leaves of a product.
      EXPECT_NEAR(cuda.trace[i], cpu.trace[i], 1e-6 * (cpu.trace[1] + cpu.trace[2])) << i;
    }
    EXPECT_EQ(cuda.damped_blocks, cpu.damped_blocks);
  }
}

TEST_F(CudaSolveTransformsTest, RetriesAndRefusesAsTheCpuDoes) {
  const Tensor weight = Random({64, 64}, 12);
  Tensor moment = RandomMoment(64, 13);
  // Slightly indefinite: damped more.
  for (int64_t j = 0; j < 32; ++j) {
    moment.as<double>()[j] = moment.as<double>()[j * 64] = 0.0;
  }
  moment.as<double>()[0] = -0.05 * moment.as<double>()[65];
  ExpectSame(ProblemOf(TransformKind::kWush, 32, Solver::kMarginal, 1e-4), weight, moment);
  moment.as<double>()[40 * 65] = -1e3 * moment.as<double>()[65];
  const auto refused = [&](Side& side) {
    TransformProblem p = ProblemOf(TransformKind::kWush, 32);
    p.weight = side.Upload(weight);
    p.second_moment = side.Upload(DiagonalBlocks(moment, 32));
    return side.backend->SolveTransforms(*side.stream, p).status();
  };
  EXPECT_EQ(refused(cuda_), refused(cpu_));
  EXPECT_THAT(std::string(refused(cuda_).message()), HasSubstr("diagonal block 1"));
}

}  // namespace
}  // namespace quantd::compute
