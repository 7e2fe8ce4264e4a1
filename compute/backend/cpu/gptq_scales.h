#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "compute/formats/number_format.h"

namespace quantd::compute {

// Scales of a layer whose transformed weights become known unit by unit. A tensor-wide divisor that
// follows the largest magnitude (NVFP4's 448 * 6 / amax) has to be set before that is known: it is
// set from the weights as they are before any feedback, groups that outgrow it take scales as if
// the divisor were smaller, and the last step makes it smaller by the power of two that their codes
// need, at most 2^3. Scales keep their values in that.
// Distinct rows of scales may be set by several threads at once.
class GptqScales {
 public:
  // `amax`: the largest magnitude of the transformed weights before feedback, read where the
  // format's divisor follows it.
  GptqScales(const NumberFormat& format, int64_t rows, int64_t cols, double amax);
  // Whether the format's divisor follows the largest magnitude.
  static bool FollowsAmax(const NumberFormat& format);

  // From `rows` x `cols` transformed weights of the rows from `row` on (a multiple of the format's
  // grid) and the columns from `col` on.
  void Set(int64_t row, int64_t rows, int64_t col, int64_t cols, const double* values);
  // The scale of column `col` in each of `rows` rows.
  void Read(int64_t row, int64_t rows, int64_t col, double* to) const;

  int64_t scale_rows() const { return scale_rows_; }
  int64_t scale_cols() const { return scale_cols_; }
  const std::vector<double>& scales() const { return scales_; }
  // After the last Set.
  std::optional<float> FinalGlobal() const;

 private:
  const NumberFormat& format_;
  ScaleGrid grid_;
  int64_t scale_rows_;
  int64_t scale_cols_;
  bool follows_amax_;
  double amax_;
  std::optional<float> global_;
  std::optional<float> small_global_;
  std::vector<double> scales_;
};

}  // namespace quantd::compute
