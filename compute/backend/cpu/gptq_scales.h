#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "compute/backend/gptq_global.h"
#include "compute/formats/number_format.h"

namespace quantd::compute {

// Scales of a layer whose transformed weights become known unit by unit.
// Distinct rows of scales may be set by several threads at once.
class GptqScales {
 public:
  // `amax` as in GptqGlobal.
  GptqScales(const NumberFormat& format, int64_t rows, int64_t cols, double amax);

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
  GptqGlobal global_;
  std::vector<double> scales_;
};

}  // namespace quantd::compute
