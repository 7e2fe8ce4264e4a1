#include "compute/backend/cpu/gptq_feedback.h"

#include <algorithm>

#include "compute/backend/cpu/matrix_product.h"

namespace quantd::compute {
namespace {

// Columns whose mutual feedback is added at once; what later columns feed back to them is one
// matrix product.
constexpr int64_t kLazy = 32;
constexpr uint8_t kNegativeZero = 8;

// Working rows, one for each thread.
struct Scratch {
  std::vector<double> errors;    // n x rows, by position
  std::vector<double> feedback;  // kLazy x rows
  std::vector<double> scaled;    // rows
  std::vector<double> inverse;   // rows, of the scales of `group`
};

// Rounds one column. RTN multiplies by the reciprocal of a scale, so this does: equal weights get
// equal codes.
void RoundColumn(const NumberFormat& format, bool negative_zeros, int64_t rows,
                 const double* feedback, const double* inverse, const double* scales,
                 double* values, uint8_t* codes, double* errors, double* scaled) {
  for (int64_t r = 0; r < rows; ++r) scaled[r] = (values[r] + feedback[r]) * inverse[r];
  format.Round(scaled, rows, 1.0, codes);
  if (negative_zeros) {
    for (int64_t r = 0; r < rows; ++r) codes[r] = codes[r] == 0 ? kNegativeZero : codes[r];
  }
  format.Decode(codes, rows, 1.0, scaled);
  for (int64_t r = 0; r < rows; ++r) {
    const double decoded = scaled[r] * scales[r];
    errors[r] = values[r] - decoded;
    values[r] = decoded;
  }
}

}  // namespace

void FeedBack(const NumberFormat& format, const UnitCoupling& unit, bool negative_zeros,
              const FeedbackPanel& panel) {
  static thread_local Scratch scratch;
  const auto n = static_cast<int64_t>(unit.order.size());
  const int64_t rows = panel.rows;
  scratch.errors.resize(n * rows);
  scratch.feedback.resize(kLazy * rows);
  scratch.scaled.resize(rows);
  scratch.inverse.resize(rows);
  double* errors = scratch.errors.data();
  int64_t group_of_inverse = -1;
  for (int64_t end = n; end > 0; end -= std::min(kLazy, end)) {
    const int64_t begin = std::max<int64_t>(end - kLazy, 0);
    if (end < n) {
      TransposedMultiply(end - begin, rows, n - end, unit.coupling.data() + end * n + begin, n,
                         errors + end * rows, rows, scratch.feedback.data(), rows);
    } else {
      std::fill_n(scratch.feedback.data(), (end - begin) * rows, 0.0);
    }
    for (int64_t i = end - 1; i >= begin; --i) {
      const int64_t column = unit.order[i];
      const double* scales = panel.scales + column / panel.group * rows;
      if (column / panel.group != group_of_inverse) {
        group_of_inverse = column / panel.group;
        for (int64_t r = 0; r < rows; ++r) {
          scratch.inverse[r] = scales[r] > 0.0 ? 1.0 / scales[r] : 0.0;
        }
      }
      RoundColumn(format, negative_zeros, rows, scratch.feedback.data() + (i - begin) * rows,
                  scratch.inverse.data(), scales, panel.values + column * rows,
                  panel.codes + column * rows, errors + i * rows, scratch.scaled.data());
      for (int64_t t = begin; t < i; ++t) {
        const double factor = unit.coupling[i * n + t];
        double* to = scratch.feedback.data() + (t - begin) * rows;
        const double* from = errors + i * rows;
        for (int64_t r = 0; r < rows; ++r) to[r] += factor * from[r];
      }
    }
  }
}

}  // namespace quantd::compute
