#pragma once

#include <cstdint>

// How a sum of x x^T lies in device memory: the lower triangle alone, as square tiles, so that it
// takes half of the matrix, and a tile in the order in which the tensor cores' results lie in
// registers, so that adding to it reads and writes whole lines. Float64.
namespace quantd::compute {

constexpr int kGramTile = 128;
constexpr int kGramTileElements = kGramTile * kGramTile;

// Tiles a side of a sum over `cols` columns.
constexpr int GramTilesASide(int64_t cols) {
  return static_cast<int>((cols + kGramTile - 1) / kGramTile);
}
constexpr int64_t GramTileCount(int side) { return int64_t{side} * (side + 1) / 2; }
constexpr int64_t GramElements(int64_t cols) {
  return GramTileCount(GramTilesASide(cols)) * kGramTileElements;
}

// Place of tile (i, j), j <= i, among the tiles.
constexpr int64_t GramTileIndex(int i, int j) { return int64_t{i} * (i + 1) / 2 + j; }

// Tiles are multiplied in pairs that share their columns. Where a column has an odd number of
// tiles, the one of the last row is left over and pairs with the next of these, with which it
// shares its row: it is stored transposed.
constexpr bool IsGramTileTransposed(int side, int i, int j) {
  return i == side - 1 && (side - j) % 2 == 1;
}

// Two products: of the columns of tile own[0] and of own[1] with those of tile `shared`.
// own[1] = -1: there is no second one.
struct GramPair {
  int own[2];
  int shared;
};

}  // namespace quantd::compute
