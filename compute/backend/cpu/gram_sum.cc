#include "compute/backend/cpu/gram_sum.h"

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

namespace quantd::compute {
namespace {

// Register tiles: kTileRows x 3 accumulators, 3 operands and 1 broadcast fit the register file.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 8;  // 28 of 32 registers
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 4;  // 16 of 16
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 3;

template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <typename T>
constexpr int kPanel = kTileVectors* kLanes<T>;
static_assert(kPanel<float> % kTileRows == 0 && kPanel<double> % kTileRows == 0);

// Tiles of the sum. Panels of doubles are half as wide as those of floats.
constexpr int64_t kTile = kPanel<float>;
static_assert(kTile % kPanel<double> == 0);

// One piece of work multiplies up to so many panels of rows with so many of columns. The columns'
// panels and a row's stay in the L2 cache, so that panels come from memory half as often.
constexpr int64_t kRowPanels = 8;
constexpr int64_t kColPanels = 2;

// tile (kTileRows x kPanel) = a^T b over `depth` rows of two panels; `a` starts at the tile's first
// column. `b` and `tile` are aligned to kVectorBytes. No array has its address taken, so that the
// compiler keeps all of them in registers. Rows of a lie a panel's width apart, which hardware
// prefetchers do not follow: `next_a`, the next tile's a, is fetched meanwhile.
// Only the first `Vectors` vectors of each row are computed.
template <typename T, int Vectors>
void MultiplyTile(const T* a, const T* b, const T* next_a, int64_t depth, T* tile) {
  using Vector __attribute__((vector_size(kVectorBytes), may_alias)) = T;
  Vector sums[kTileRows][Vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const auto* from = reinterpret_cast<const Vector*>(b + k * kPanel<T>);
    Vector columns[Vectors];
#pragma GCC unroll 3
    for (int j = 0; j < Vectors; ++j) columns[j] = from[j];
    __builtin_prefetch(next_a + k * kPanel<T>, /*write=*/0, /*locality=*/2);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const Vector row = a[k * kPanel<T> + i] - Vector{};  // a broadcast: x - 0 is x
#pragma GCC unroll 3
      for (int j = 0; j < Vectors; ++j) sums[i][j] += row * columns[j];
    }
  }
  auto* to = reinterpret_cast<Vector*>(tile);
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < Vectors; ++j) to[kTileVectors * i + j] = sums[i][j];
  }
}

// A register tile over all rows, in float64. On the diagonal, `vectors` leaves out what lies
// wholly above it (those sums are 0).
template <typename T>
void SumTile(const T* a, const T* b, const T* next_a, int64_t rows, int vectors, double* sums) {
  static_assert(kTileVectors == 3);
  constexpr auto kMultiply = std::array{MultiplyTile<T, 1>, MultiplyTile<T, 2>, MultiplyTile<T, 3>};
  alignas(kVectorBytes) T tile[kTileRows * kPanel<T>] = {};
  std::fill_n(sums, kTileRows * kPanel<T>, 0.0);
  for (int64_t k = 0; k < rows; k += kGramDepth) {
    const int64_t at = k * kPanel<T>;
    kMultiply[vectors - 1](a + at, b + at, next_a + at, std::min(kGramDepth, rows - k), tile);
    for (int i = 0; i < kTileRows * kPanel<T>; ++i) sums[i] += tile[i];
  }
}

// Squares of the panel's columns.
void SumSquares(const float* panel, int64_t rows, double* squares) {
  std::fill_n(squares, kPanel<float>, 0.0);
  for (int64_t k = 0; k < rows; ++k) {
    for (int j = 0; j < kPanel<float>; ++j) {
      const double value = panel[k * kPanel<float> + j];
      squares[j] += value * value;
    }
  }
}

// tile += (panel p)^T (panel q), both of T; `next` is the panel that will take p's place. `to` is
// their place in a tile of the sum, whose rows are kTile apart.
template <typename T>
void AddPanels(const T* p, const T* q, const T* next, int64_t rows, double* to) {
  alignas(kVectorBytes) double sums[kTileRows * kPanel<T>];
  double squares[kPanel<T>];
  const bool exact_diagonal = std::is_same_v<T, float> && p == q;
  if constexpr (std::is_same_v<T, float>) {
    if (exact_diagonal) SumSquares(p, rows, squares);
  }
  for (int r = 0; r < kPanel<T>; r += kTileRows) {
    const T* a = p + r;
    const int vectors = p == q ? (r + kTileRows - 1) / kLanes<T> + 1 : kTileVectors;
    SumTile(a, q, r + kTileRows < kPanel<T> ? a + kTileRows : next, rows, vectors, sums);
    for (int i = 0; i < kTileRows; ++i) {
      if (exact_diagonal) sums[i * kPanel<T> + r + i] = squares[r + i];
      double* row = to + (r + i) * kTile;
      for (int j = 0; j < kPanel<T>; ++j) row[j] += sums[i * kPanel<T> + j];
    }
  }
}

struct Piece {
  int64_t first_row;  // panels
  int64_t end_row;
  int64_t first_col;
};

// Together the lower triangle.
std::vector<Piece> Pieces(int64_t panels) {
  std::vector<Piece> pieces;
  for (int64_t q = 0; q < panels; q += kColPanels) {
    for (int64_t p = q; p < panels; p += kRowPanels) {
      pieces.push_back({p, std::min(p + kRowPanels, panels), q});
    }
  }
  return pieces;
}

}  // namespace

template <>
int64_t GramSum::PanelWidth<float>() {
  return kPanel<float>;
}
template <>
int64_t GramSum::PanelWidth<double>() {
  return kPanel<double>;
}

GramSum::GramSum(int64_t cols)
    : cols_(cols),
      tiles_((cols + kTile - 1) / kTile),
      values_(tiles_ * (tiles_ + 1) / 2 * kTile * kTile) {}

double* GramSum::tile(int64_t i, int64_t j) {
  return values_.data() + (i * (i + 1) / 2 + j) * kTile * kTile;
}
const double* GramSum::tile(int64_t i, int64_t j) const {
  return values_.data() + (i * (i + 1) / 2 + j) * kTile * kTile;
}

template <typename T>
void GramSum::AddProduct(WorkerPool& pool, const PanelBuffer<T>& x, int64_t rows) {
  constexpr int64_t kPanelsPerTile = kTile / kPanel<T>;
  const std::vector<Piece> pieces = Pieces(x.panels());
  const auto add = [&](int64_t p, int64_t q) {
    double* to = tile(p / kPanelsPerTile, q / kPanelsPerTile) +
                 p % kPanelsPerTile * kPanel<T> * kTile + q % kPanelsPerTile * kPanel<T>;
    AddPanels(x.panel(p), x.panel(q), x.panel(std::min(p + 1, x.panels() - 1)), rows, to);
  };
  pool.ParallelFor(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[i];
      for (int64_t p = piece.first_row; p < piece.end_row; ++p) {
        const int64_t end_col = std::min(piece.first_col + kColPanels, p + 1);
        for (int64_t q = piece.first_col; q < end_col; ++q) add(p, q);
      }
    }
  });
}

void GramSum::Add(WorkerPool& pool, const PanelBuffer<float>& x, int64_t rows) {
  AddProduct(pool, x, rows);
}
void GramSum::Add(WorkerPool& pool, const PanelBuffer<double>& x, int64_t rows) {
  AddProduct(pool, x, rows);
}

void GramSum::Load(WorkerPool& pool, const double* matrix) {
  pool.ParallelFor(0, cols_, kTile, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t j = 0; j <= row / kTile; ++j) {
        const int64_t width = std::min(kTile, cols_ - j * kTile);
        std::copy_n(matrix + row * cols_ + j * kTile, width,
                    tile(row / kTile, j) + row % kTile * kTile);
      }
    }
  });
}

void GramSum::Store(WorkerPool& pool, double* matrix) const {
  pool.ParallelFor(0, cols_, kTile, [&](int64_t begin, int64_t end) {
    const int64_t own = begin / kTile;
    for (int64_t j = 0; j < tiles_; ++j) {
      const int64_t width = std::min(kTile, cols_ - j * kTile);
      const double* from = j <= own ? tile(own, j) : tile(j, own);
      for (int64_t row = begin; row < end; ++row) {
        double* to = matrix + row * cols_ + j * kTile;
        for (int64_t c = 0; c < width; ++c) {
          const bool lower = j < own || (j == own && c <= row - begin);
          to[c] = lower ? from[(row - begin) * kTile + c] : from[c * kTile + row - begin];
        }
      }
    }
  });
}

}  // namespace quantd::compute
