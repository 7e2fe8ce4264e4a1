#include "compute/backend/gptq_global.h"

#include "compute/formats/element_codec.h"

namespace quantd::compute {
namespace {

constexpr double kHeadroom = 8.0;
// Below it a scale that the divisor makes a subnormal E4M3 number would not survive a smaller one.
constexpr double kSmallGroup = 1.0 / 1024.0;

}  // namespace

bool GptqGlobal::FollowsAmax(const NumberFormat& format) {
  return format.GlobalScale(1.0) != format.GlobalScale(2.0);
}

GptqGlobal::GptqGlobal(const NumberFormat& format, double amax)
    : follows_amax_(FollowsAmax(format)),
      amax_(amax),
      global_(format.GlobalScale(amax)),
      small_global_(format.GlobalScale(amax * kHeadroom)) {}

double GptqGlobal::small() const { return kSmallGroup * amax_; }

std::optional<float> GptqGlobal::For(double group_amax) const {
  const bool small = follows_amax_ && (group_amax > outgrown() || group_amax < this->small());
  return small ? small_global_ : global_;
}

std::optional<float> GptqGlobal::Final(double largest_scale) const {
  if (!follows_amax_) return global_;
  float global = *global_;
  for (double h = 1.0; h < kHeadroom && largest_scale * global > kE4m3Max * (1.0 + 1e-9);
       h *= 2.0) {
    global *= 0.5f;
  }
  return global;
}

}  // namespace quantd::compute
