#include "compute/second_moment/row_sample.h"

#include <xxhash.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace quantd::compute {
namespace {

// Ties are broken by value, so that the order of arrival never shows.
bool Before(const RowSample::Row& a, const RowSample::Row& b) {
  if (a.priority != b.priority) return a.priority < b.priority;
  return a.values < b.values;
}

}  // namespace

RowSample::RowSample(int64_t capacity, int64_t cols, uint64_t seed)
    : capacity_(capacity), cols_(cols), seed_(seed) {}

uint64_t RowSample::PriorityOf(absl::string_view key, int64_t index) const {
  const uint64_t stream = XXH3_64bits_withSeed(key.data(), key.size(), seed_);
  // Byte by byte: the same sample on machines of either endianness.
  unsigned char bytes[8];
  for (int i = 0; i < 8; ++i) {
    bytes[i] = static_cast<unsigned char>(static_cast<uint64_t>(index) >> (8 * i));
  }
  return XXH3_64bits_withSeed(bytes, sizeof(bytes), stream);
}

bool RowSample::Wants(uint64_t priority) const {
  if (size() < capacity_) return true;
  return capacity_ > 0 && priority <= rows_.back().priority;
}

void RowSample::Add(uint64_t priority, std::vector<float> values) {
  if (!Wants(priority)) return;
  Row row{priority, std::move(values)};
  rows_.insert(std::upper_bound(rows_.begin(), rows_.end(), row, Before), std::move(row));
  if (size() > capacity_) rows_.pop_back();
}

void RowSample::Merge(const RowSample& other) {
  std::vector<Row> merged;
  merged.reserve(rows_.size() + other.rows_.size());
  std::merge(std::make_move_iterator(rows_.begin()), std::make_move_iterator(rows_.end()),
             other.rows_.begin(), other.rows_.end(), std::back_inserter(merged), Before);
  if (static_cast<int64_t>(merged.size()) > capacity_) merged.resize(capacity_);
  rows_ = std::move(merged);
}

}  // namespace quantd::compute
