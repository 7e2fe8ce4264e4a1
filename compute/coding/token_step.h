#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "compute/coding/coding_model.h"
#include "compute/coding/stream_header.h"

namespace quantd::compute {

// One step x -> floor(x / f) 2^n + start + x mod f, the division by a multiplication: exact for
// 32-bit x and f >= 2 (Lemire et al., arXiv 1902.01961). For f = 1 the quotient comes out one too
// small, which the offset makes up for.
class TokenStep {
 public:
  TokenStep() = default;
  TokenStep(uint32_t start, uint32_t frequency, int precision)
      : reciprocal_(frequency > 1 ? std::numeric_limits<uint64_t>::max() / frequency + 1
                                  : std::numeric_limits<uint64_t>::max()),
        limit_(static_cast<uint64_t>(frequency) << (2 * kWordBits - precision)),
        complement_((1u << precision) - frequency),
        offset_(frequency > 1 ? start : start + complement_) {}

  uint64_t reciprocal() const { return reciprocal_; }
  uint64_t limit() const { return limit_; }
  uint32_t complement() const { return complement_; }
  uint32_t offset() const { return offset_; }

  bool Overflows(uint32_t state) const { return state >= limit_; }
  uint32_t operator()(uint32_t state) const {
    const auto product = static_cast<unsigned __int128>(reciprocal_) * state;
    return state + offset_ + static_cast<uint32_t>(product >> 64) * complement_;
  }

 private:
  uint64_t reciprocal_ = 0;
  uint64_t limit_ = 0;  // states from here on give a word away first
  uint32_t complement_ = 0;
  uint32_t offset_ = 0;
};

// Of each token of a table; tokens of frequency 0 have a step that is never taken.
std::vector<TokenStep> StepsOf(const CodingModel::Table& table, int precision);

}  // namespace quantd::compute
