#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace quantd::compute {

// A uniform sample without replacement of at most `capacity` rows of a stream of rows in R^C: the
// rows with the smallest priorities, where a row's priority is a hash of (seed, key, index). Being
// "the k smallest", it does not depend on the order of rows and merges with other samples; being
// seeded, it is the same on every replay. Value type.
class RowSample {
 public:
  struct Row {
    uint64_t priority;
    std::vector<float> values;  // C
  };

  RowSample() = default;
  RowSample(int64_t capacity, int64_t cols, uint64_t seed);

  // Priority of row `index` of the stream `key`.
  uint64_t PriorityOf(absl::string_view key, int64_t index) const;
  // Whether a row of this priority would enter: ask before converting the row.
  bool Wants(uint64_t priority) const;
  void Add(uint64_t priority, std::vector<float> values);
  void Merge(const RowSample& other);  // same cols; the capacity stays

  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  int64_t capacity() const { return capacity_; }
  int64_t cols() const { return cols_; }
  uint64_t seed() const { return seed_; }
  // In ascending order of priority (ties: by value), so equal samples read equal.
  const std::vector<Row>& rows() const { return rows_; }

 private:
  int64_t capacity_ = 0;
  int64_t cols_ = 0;
  uint64_t seed_ = 0;
  std::vector<Row> rows_;
};

}  // namespace quantd::compute
