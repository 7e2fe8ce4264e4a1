// Eigenvalues against LAPACK's single-stage routine, which goes another way.
#include "compute/backend/cpu/eigenvalues.h"

#include <cblas.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "compute/backend/cpu/tridiagonal.h"
#include "tests/compute/normal_values.h"

// NOLINTBEGIN(readability-identifier-naming): names in LAPACK
extern "C" {
void dsyev_(const char* jobz, const char* uplo, const blasint* n, double* a, const blasint* lda,
            double* w, double* work, const blasint* lwork, blasint* info, std::size_t jobz_length,
            std::size_t uplo_length);
void dsterf_(const blasint* n, double* d, double* e, blasint* info);
}
// NOLINTEND(readability-identifier-naming)

namespace quantd::compute {
namespace {

using testing::DoubleNear;
using testing::Pointwise;

using Matrix = std::vector<double>;

Matrix Lapack(int64_t n, Matrix a) {
  const auto size = static_cast<blasint>(n);
  const blasint work_size = 40 * size;
  Matrix values(n);
  Matrix work(work_size);
  blasint info = 0;
  dsyev_("N", "U", &size, a.data(), &size, values.data(), work.data(), &work_size, &info, 1, 1);
  EXPECT_EQ(info, 0);
  return values;
}

// The lower triangle of X X^T / rank + a band whose elements halve with every diagonal.
Matrix LowRankAndBand(int64_t n, int64_t rank, int64_t band, int seed) {
  Matrix m(n * n);
  if (rank > 0) {
    const Matrix x = NormalValues(n * rank, seed);
    cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, static_cast<blasint>(n),
                static_cast<blasint>(rank), 1.0 / static_cast<double>(rank), x.data(),
                static_cast<blasint>(rank), 0.0, m.data(), static_cast<blasint>(n));
  }
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t col = std::max<int64_t>(0, row - band + 1); col <= row; ++col) {
      m[row * n + col] += std::ldexp(1.0, static_cast<int>(col - row));
    }
  }
  return m;
}

struct Kind {
  std::string name;
  Matrix (*make)(int64_t n);
};

const std::vector<Kind>& Kinds() {
  static const auto* const kinds = new std::vector<Kind>{
      {"dense", [](int64_t n) { return NormalValues(n * n, 7); }},
      {"full rank", [](int64_t n) { return LowRankAndBand(n, 2 * n, 0, 1); }},
      {"low rank", [](int64_t n) { return LowRankAndBand(n, std::max<int64_t>(1, n / 8), 0, 2); }},
      {"low rank and band",
       [](int64_t n) { return LowRankAndBand(n, std::max<int64_t>(1, n / 8), 5, 3); }},
      {"rank one", [](int64_t n) { return LowRankAndBand(n, 1, 0, 4); }},
      {"band", [](int64_t n) { return LowRankAndBand(n, 0, 4, 0); }},
      {"wide band", [](int64_t n) { return LowRankAndBand(n, 0, 50, 0); }},
      {"diagonal", [](int64_t n) { return LowRankAndBand(n, 0, 1, 0); }},
      {"zero", [](int64_t n) { return LowRankAndBand(n, 0, 0, 0); }},
  };
  return *kinds;
}

double Largest(const Matrix& ascending) {
  return std::max(std::abs(ascending.front()), std::abs(ascending.back()));
}

// Also of sizes that are reduced in one call otherwise, where a panel or a sweep ends early.
TEST(TridiagonalTest, HasTheEigenvaluesOfTheMatrix) {
  for (const int64_t n : {1, 2, 3, 31, 32, 33, 34, 63, 64, 65, 66, 97, 100, 333, 640}) {
    for (const Kind& kind : Kinds()) {
      const Matrix m = kind.make(n);
      const Matrix expected = Lapack(n, m);
      Matrix a = m;
      absl::StatusOr<Tridiagonal> reduced = ReduceToTridiagonal(n, a.data(), nullptr);
      ASSERT_TRUE(reduced.ok()) << reduced.status();
      ASSERT_EQ(reduced->off_diagonal.size(), static_cast<size_t>(n - 1));
      const auto size = static_cast<blasint>(n);
      blasint info = 0;
      reduced->off_diagonal.resize(n);  // of one element, for n = 1
      dsterf_(&size, reduced->diagonal.data(), reduced->off_diagonal.data(), &info);
      ASSERT_EQ(info, 0);
      EXPECT_THAT(reduced->diagonal, Pointwise(DoubleNear(1e-13 * Largest(expected)), expected))
          << kind.name << ", " << n;
    }
  }
}

TEST(TridiagonalTest, StopsWhenCancelled) {
  class NoStream final : public Stream {
   public:
    using Stream::Stream;
    absl::Status Synchronize() override { return absl::OkStatus(); }
    int64_t peak_bytes() const override { return 0; }
  };
  CancelFlag flag;
  const NoStream stream(&flag);
  for (const int64_t n : {20, 200}) {  // without panels, and with some
    Matrix m = NormalValues(n * n, 1);
    EXPECT_TRUE(ReduceToTridiagonal(n, m.data(), &stream).ok());
  }
  flag.Cancel();
  for (const int64_t n : {20, 200}) {
    Matrix m = NormalValues(n * n, 1);
    EXPECT_TRUE(absl::IsCancelled(ReduceToTridiagonal(n, m.data(), &stream).status()));
  }
}

TEST(EigenvaluesTest, KnownSpectra) {
  EXPECT_THAT(SymmetricEigenvalues(2, Matrix{2, 99, 1, 2}.data()).value(),
              Pointwise(DoubleNear(1e-14), {1.0, 3.0}));
  EXPECT_TRUE(SymmetricEigenvalues(0, nullptr).value().empty());
}

TEST(EigenvaluesTest, AreLapacksBelowAndAboveTheSizeOfTwoStages) {
  for (const int64_t n : {150, 1024, 2085}) {
    for (const Kind& kind : {Kinds()[1], Kinds()[3]}) {
      const Matrix m = kind.make(n);
      const Matrix expected = Lapack(n, m);
      EXPECT_THAT(SymmetricEigenvalues(n, m.data()).value(),
                  Pointwise(DoubleNear(1e-13 * Largest(expected)), expected))
          << kind.name << ", " << n;
    }
  }
}

// Whose squares overflow and vanish.
TEST(EigenvaluesTest, HugeAndTinyElements) {
  constexpr int64_t kSize = 2050;
  const Matrix m = Kinds()[3].make(kSize);
  const Matrix plain = SymmetricEigenvalues(kSize, m.data()).value();
  for (const double scale : {0x1p-700, 0x1p700}) {
    Matrix scaled = m;
    for (double& value : scaled) value *= scale;
    Matrix expected = plain;
    for (double& value : expected) value *= scale;
    EXPECT_THAT(SymmetricEigenvalues(kSize, scaled.data()).value(),
                Pointwise(DoubleNear(1e-13 * Largest(expected)), expected));
  }
}

}  // namespace
}  // namespace quantd::compute
