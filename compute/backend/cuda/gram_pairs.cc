#include "compute/backend/cuda/gram_pairs.h"

#include <algorithm>
#include <cstddef>

namespace quantd::compute {
namespace {

// Pairs in squares of so many tiles a side run at one time on a large device, and their columns fit
// its cache.
constexpr int kSquare = 12;

// Tiles of columns [first, end) in rows [first_row, end_row), two at a time. Those left over of
// columns with an odd number of tiles are in the last row: IsGramTileTransposed.
void AddSquare(int side, int first, int end, int first_row, int end_row,
               std::vector<GramPair>& pairs) {
  for (int j = first; j < end; ++j) {
    const int last = side - (side - j) % 2;
    // From the top of the column on, so that squares do not cut a pair.
    for (int i = j; i + 1 < last; i += 2) {
      if (i >= first_row && i < end_row) pairs.push_back({{i, i + 1}, j});
    }
  }
}

}  // namespace

std::vector<GramPair> GramPairs(int side) {
  std::vector<GramPair> pairs;
  for (int row = 0; row < side; row += kSquare) {
    for (int j = 0; j < std::min(row + kSquare, side); j += kSquare) {
      AddSquare(side, j, std::min(j + kSquare, side), row, row + kSquare, pairs);
    }
  }
  std::vector<int> left_over;
  for (int j = 0; j < side; ++j) {
    if ((side - j) % 2 == 1) left_over.push_back(j);
  }
  for (size_t i = 0; i < left_over.size(); i += 2) {
    const int second = i + 1 < left_over.size() ? left_over[i + 1] : -1;
    pairs.push_back({{left_over[i], second}, side - 1});
  }
  return pairs;
}

}  // namespace quantd::compute
