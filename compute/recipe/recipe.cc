#include "compute/recipe/recipe.h"

#include <bit>

#include "absl/strings/str_cat.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {
namespace {

constexpr int64_t kMinIntGroup = 16;
constexpr int64_t kMaxIntGroup = 256;
constexpr int64_t kMaxTransformBlock = 256;
constexpr int64_t kDefaultTransformBlock = 32;

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

bool IsInt(Format format) { return format == Format::kInt4 || format == Format::kInt8; }
bool IsDataAware(TransformKind kind) {
  return kind == TransformKind::kWus || kind == TransformKind::kWush;
}

absl::Status ResolveScaleRule(Recipe& r) {
  if (!r.scale_rule.has_value()) {
    if (r.format == Format::kMxfp4) {
      r.scale_rule = ScaleRule::kNoclip;
    } else if (r.format == Format::kNvfp4) {
      r.scale_rule = ScaleRule::kMse;
    } else {
      r.scale_rule = IsInt(r.format) ? ScaleRule::kAbsmax : ScaleRule::kAmax;
    }
    return absl::OkStatus();
  }
  absl::string_view expected;
  bool fits = false;
  switch (r.format) {
    case Format::kMxfp4:
      expected = "ocp or noclip";
      fits = r.scale_rule == ScaleRule::kOcp || r.scale_rule == ScaleRule::kNoclip;
      break;
    case Format::kInt4:
    case Format::kInt8:
      expected = "absmax, compressed-tensors or gaussian-mse";
      fits = r.scale_rule == ScaleRule::kAbsmax || r.scale_rule == ScaleRule::kCompressedTensors ||
             r.scale_rule == ScaleRule::kGaussianMse;
      break;
    case Format::kNvfp4:
      expected = "mse or amax";
      fits = r.scale_rule == ScaleRule::kMse || r.scale_rule == ScaleRule::kAmax;
      break;
    case Format::kFp8:
      expected = "none (amax is the only rule)";
      fits = r.scale_rule == ScaleRule::kAmax;
      break;
  }
  if (fits) return absl::OkStatus();
  return Bad("scale_rule: expected ", expected, " for ", NameOf(r.format), "; got ",
             NameOf(*r.scale_rule));
}

absl::Status ResolveGranularity(Recipe& r) {
  if (!r.granularity.has_value()) {
    r.granularity = r.format == Format::kFp8 ? Granularity::kRow : Granularity::kGroup;
    return absl::OkStatus();
  }
  absl::string_view expected;
  bool fits = false;
  switch (r.format) {
    case Format::kMxfp4:
    case Format::kNvfp4:
      expected = "group";
      fits = r.granularity == Granularity::kGroup;
      break;
    case Format::kInt4:
    case Format::kInt8:
      expected = "group or row";
      fits = r.granularity == Granularity::kGroup || r.granularity == Granularity::kRow;
      break;
    case Format::kFp8:
      expected = "row or block-128x128";
      fits = r.granularity == Granularity::kRow || r.granularity == Granularity::kBlock128;
      break;
  }
  if (fits) return absl::OkStatus();
  return Bad("granularity: expected ", expected, " for ", NameOf(r.format), "; got ",
             NameOf(*r.granularity));
}

absl::Status ResolveGroupSize(Recipe& r) {
  if (r.granularity != Granularity::kGroup) {
    if (r.group_size != 0) {
      return Bad("group_size: expected none with granularity ", NameOf(*r.granularity), "; got ",
                 r.group_size);
    }
    return absl::OkStatus();
  }
  if (r.format == Format::kMxfp4 || r.format == Format::kNvfp4) {
    const int64_t fixed = r.format == Format::kMxfp4 ? 32 : 16;
    if (r.group_size != 0 && r.group_size != fixed) {
      return Bad("group_size: expected ", fixed, " for ", NameOf(r.format), "; got ", r.group_size);
    }
    r.group_size = fixed;
    return absl::OkStatus();
  }
  if (r.group_size == 0) r.group_size = 32;
  if (r.group_size < kMinIntGroup || r.group_size > kMaxIntGroup || r.group_size % 2 != 0) {
    return Bad("group_size: expected an even number in ", kMinIntGroup, "..", kMaxIntGroup, " for ",
               NameOf(r.format), "; got ", r.group_size);
  }
  return absl::OkStatus();
}

absl::Status ResolveTransformBlock(Recipe& r) {
  if (r.transform_block_size == 0) {
    r.transform_block_size = r.group_size != 0 ? r.group_size : kDefaultTransformBlock;
  }
  if (r.transform_block_size < 2 || r.transform_block_size > kMaxTransformBlock) {
    return Bad("transform_block_size: expected 2..", kMaxTransformBlock, "; got ",
               r.transform_block_size);
  }
  const bool power_of_two = std::has_single_bit(static_cast<uint64_t>(r.transform_block_size));
  const bool needs_power_of_two = r.transform == TransformKind::kHadamard ||
                                  r.transform == TransformKind::kRandom ||
                                  r.transform == TransformKind::kWush;
  if (needs_power_of_two && !power_of_two) {
    return Bad("transform_block_size: expected a power of two for ", NameOf(r.transform), "; got ",
               r.transform_block_size);
  }
  return absl::OkStatus();
}

// Written so that NaN fails.
absl::Status CheckNumbers(const Recipe& r) {
  if (r.damping.has_value() && !(*r.damping >= 1e-8 && *r.damping <= 1.0)) {
    return Bad("damping: expected 1e-8..1; got ", *r.damping);
  }
  if (r.method == Method::kWaterSic) {
    if (!(r.rate_bits > 0.0 && r.rate_bits <= 16.0)) {
      return Bad("rate_bits: expected a number in (0, 16] for watersic; got ", r.rate_bits);
    }
  } else if (!(r.rate_bits == 0.0)) {
    return Bad("rate_bits: expected none for ", NameOf(r.method), "; got ", r.rate_bits);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Recipe> ResolveRecipe(const Recipe& recipe) {
  Recipe resolved = recipe;
  for (absl::Status (*step)(Recipe&) :
       {ResolveScaleRule, ResolveGranularity, ResolveGroupSize, ResolveTransformBlock}) {
    if (absl::Status status = step(resolved); !status.ok()) return status;
  }
  if (absl::Status status = CheckNumbers(resolved); !status.ok()) return status;
  return resolved;
}

absl::Status CheckGeometry(const Recipe& resolved, int64_t rows, int64_t cols) {
  if (rows < 1 || rows > kMaxDimension) {
    return Bad("weight: expected 1..", kMaxDimension, " rows; got ", rows);
  }
  if (cols < 1 || cols > kMaxDimension) {
    return Bad("weight: expected 1..", kMaxDimension, " columns; got ", cols);
  }
  if (resolved.granularity == Granularity::kGroup && cols % resolved.group_size != 0) {
    return Bad("weight: expected a multiple of group_size ", resolved.group_size, " columns for ",
               NameOf(resolved.format), "; got ", cols);
  }
  if (resolved.format == Format::kInt4 && cols % 2 != 0) {
    return Bad("weight: expected an even number of columns for int4; got ", cols);
  }
  if (resolved.transform != TransformKind::kIdentity && cols % resolved.transform_block_size != 0) {
    return Bad("weight: expected a multiple of transform_block_size ",
               resolved.transform_block_size, " columns for ", NameOf(resolved.transform), "; got ",
               cols);
  }
  return absl::OkStatus();
}

bool NeedsSecondMoment(const Recipe& resolved) {
  return IsDataAware(resolved.transform) || resolved.method != Method::kRtn;
}

bool NeedsFullSecondMoment(const Recipe& resolved) {
  return (IsDataAware(resolved.transform) && resolved.solver == Solver::kConditional) ||
         resolved.method != Method::kRtn;
}

}  // namespace quantd::compute
