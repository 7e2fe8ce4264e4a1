#pragma once

#include <optional>

#include "compute/formats/number_format.h"

namespace quantd::compute {

// The tensor-wide divisor of a layer whose transformed weights become known unit by unit. One that
// follows the largest magnitude (NVFP4's 448 * 6 / amax) has to be set before that is known: it is
// set from the weights as they are before any feedback, groups that outgrow it take scales as if
// the divisor were smaller, and the last step makes it smaller by the power of two that their codes
// need, at most 2^3. Scales keep their values in that.
class GptqGlobal {
 public:
  // Whether the format's divisor follows the largest magnitude.
  static bool FollowsAmax(const NumberFormat& format);
  // `amax`: the largest magnitude of the transformed weights before feedback, read where the
  // format's divisor follows it.
  GptqGlobal(const NumberFormat& format, double amax);

  bool follows_amax() const { return follows_amax_; }
  std::optional<float> global() const { return global_; }
  // What groups take scales by whose largest magnitude is above `outgrown` or below `small`.
  std::optional<float> small_global() const { return small_global_; }
  double outgrown() const { return amax_; }
  double small() const;
  // For the group of this largest magnitude.
  std::optional<float> For(double group_amax) const;
  // What is stored, given the largest of all scales.
  std::optional<float> Final(double largest_scale) const;

 private:
  bool follows_amax_;
  double amax_;
  std::optional<float> global_;
  std::optional<float> small_global_;
};

}  // namespace quantd::compute
