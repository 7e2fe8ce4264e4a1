#pragma once

#include <vector>

#include "compute/backend/cuda/gram_tiles.h"

namespace quantd::compute {

// All tiles of the lower triangle of `side` x `side` tiles, each once, in an order in which
// neighbours in the list need the same columns.
std::vector<GramPair> GramPairs(int side);

}  // namespace quantd::compute
