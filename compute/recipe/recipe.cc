#include "compute/recipe/recipe.h"

#include <bit>

#include "absl/strings/str_cat.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {
namespace {

constexpr int64_t kMinIntGroup = 16;
constexpr int64_t kMaxIntGroup = 256;
constexpr int64_t kMinHadamardGroup = 32;
constexpr int64_t kMaxHadamardGroup = 1024;
constexpr int64_t kDefaultHadamardGroup = 256;
constexpr int64_t kMaxTransformBlock = 256;
constexpr int64_t kDefaultTransformBlock = 32;

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// Codes of these have no number format with scales in the sense of the other fields.
bool IsMethodsOwn(Format format) {
  return format == Format::kEntropyCoded || format == Format::kGaussianGrid;
}
bool IsInt(Format format) {
  return format == Format::kInt2 || format == Format::kInt3 || format == Format::kInt4 ||
         format == Format::kInt8;
}

// Rows of packed codes end with a byte.
int64_t ColumnsOfWholeBytes(Format format) {
  if (format == Format::kInt2) return 4;
  if (format == Format::kInt3) return 8;
  return format == Format::kInt4 ? 2 : 1;
}

absl::Status CheckFormat(Recipe& r) {
  const std::optional<Format> implied = ImpliedFormat(r.method);
  if (implied.has_value() && r.format != *implied) {
    return Bad("format: expected none or ", NameOf(*implied), " for ", NameOf(r.method), "; got ",
               NameOf(r.format));
  }
  if (!implied.has_value() && IsMethodsOwn(r.format)) {
    return Bad("format: expected a number format for ", NameOf(r.method), "; got ",
               NameOf(r.format));
  }
  if (implied.has_value() && r.transform != TransformKind::kIdentity) {
    return Bad("transform: expected identity for ", NameOf(r.method), "; got ",
               NameOf(r.transform));
  }
  return absl::OkStatus();
}

absl::Status ResolveScaleRule(Recipe& r) {
  if (!r.scale_rule.has_value()) {
    if (IsMethodsOwn(r.format)) return absl::OkStatus();
    if (r.format == Format::kMxfp4) {
      r.scale_rule = ScaleRule::kNoclip;
    } else if (r.format == Format::kNvfp4) {
      r.scale_rule = ScaleRule::kMse;
    } else {
      r.scale_rule = IsInt(r.format) ? ScaleRule::kAbsmax : ScaleRule::kAmax;
      // With few codes, spending them on the largest magnitude is far from optimal; with eight, a
      // clipped outlier costs more than what is gained.
      if (r.format == Format::kInt2) r.scale_rule = ScaleRule::kGaussianMse;
      if (r.format == Format::kInt3) r.scale_rule = ScaleRule::kCompressedTensors;
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
    case Format::kInt2:
    case Format::kInt3:
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
    case Format::kEntropyCoded:
    case Format::kGaussianGrid:
      expected = "none";
      break;
  }
  if (fits) return absl::OkStatus();
  return Bad("scale_rule: expected ", expected, " for ", NameOf(r.format), "; got ",
             NameOf(*r.scale_rule));
}

absl::Status ResolveGranularity(Recipe& r) {
  if (!r.granularity.has_value()) {
    if (r.format == Format::kEntropyCoded) return absl::OkStatus();
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
    case Format::kInt2:
    case Format::kInt3:
    case Format::kInt4:
    case Format::kInt8:
      expected = "group or row";
      fits = r.granularity == Granularity::kGroup || r.granularity == Granularity::kRow;
      break;
    case Format::kFp8:
      expected = "row or block-128x128";
      fits = r.granularity == Granularity::kRow || r.granularity == Granularity::kBlock128;
      break;
    case Format::kEntropyCoded:
      expected = "none";
      break;
    case Format::kGaussianGrid:
      expected = "group";
      fits = r.granularity == Granularity::kGroup;
      break;
  }
  if (fits) return absl::OkStatus();
  return Bad("granularity: expected ", expected, " for ", NameOf(r.format), "; got ",
             NameOf(*r.granularity));
}

absl::Status ResolveGroupSize(Recipe& r) {
  if (r.granularity != Granularity::kGroup) {
    if (r.group_size != 0) {
      return Bad("group_size: expected none with ",
                 r.granularity ? absl::StrCat("granularity ", NameOf(*r.granularity))
                               : std::string(NameOf(r.method)),
                 "; got ", r.group_size);
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
  if (r.format == Format::kGaussianGrid) {
    if (r.group_size == 0) r.group_size = kDefaultHadamardGroup;
    if (r.group_size < kMinHadamardGroup || r.group_size > kMaxHadamardGroup ||
        !std::has_single_bit(static_cast<uint64_t>(r.group_size))) {
      return Bad("group_size: expected a power of two in ", kMinHadamardGroup, "..",
                 kMaxHadamardGroup, " for higgs; got ", r.group_size);
    }
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
    const bool follows_group = r.group_size != 0 && !IsMethodsOwn(r.format);
    r.transform_block_size = follows_group ? r.group_size : kDefaultTransformBlock;
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
  if (!(r.gptq.damping >= 0.0 && r.gptq.damping <= 1.0)) {
    return Bad("gptq.damping: expected 0..1; got ", r.gptq.damping);
  }
  if (r.method != Method::kGptq && r.gptq != GptqOptions()) {
    return Bad("gptq: expected none for ", NameOf(r.method));
  }
  if (r.method == Method::kWaterSic) {
    if (!(r.rate_bits > 0.0 && r.rate_bits <= 16.0)) {
      return Bad("rate_bits: expected a number in (0, 16] for watersic; got ", r.rate_bits);
    }
  } else if (r.method == Method::kHiggs) {
    if (r.rate_bits != 2.0 && r.rate_bits != 3.0 && r.rate_bits != 4.0) {
      return Bad("rate_bits: expected 2, 3 or 4 for higgs; got ", r.rate_bits);
    }
  } else if (!(r.rate_bits == 0.0)) {
    return Bad("rate_bits: expected none for ", NameOf(r.method), "; got ", r.rate_bits);
  }
  return absl::OkStatus();
}

absl::Status ResolveGridDimension(Recipe& r) {
  if (r.method != Method::kHiggs) {
    if (r.grid_dimension == 0) return absl::OkStatus();
    return Bad("grid_dimension: expected none for ", NameOf(r.method), "; got ", r.grid_dimension);
  }
  if (r.grid_dimension == 0) r.grid_dimension = 1;
  if (r.grid_dimension == 1 || r.grid_dimension == 2) return absl::OkStatus();
  return Bad("grid_dimension: expected 1 or 2; got ", r.grid_dimension);
}

}  // namespace

std::optional<Format> ImpliedFormat(Method method) {
  switch (method) {
    case Method::kRtn:
    case Method::kGptq:
      return std::nullopt;
    case Method::kWaterSic:
      return Format::kEntropyCoded;
    case Method::kHiggs:
      return Format::kGaussianGrid;
  }
  return std::nullopt;
}

absl::StatusOr<Recipe> ResolveRecipe(const Recipe& recipe) {
  Recipe resolved = recipe;
  for (absl::Status (*step)(Recipe&) :
       {CheckFormat, ResolveScaleRule, ResolveGranularity, ResolveGroupSize, ResolveTransformBlock,
        ResolveGridDimension}) {
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
  const int64_t step = ColumnsOfWholeBytes(resolved.format);
  if (cols % step != 0) {
    return Bad("weight: expected a multiple of ", step, " columns for ", NameOf(resolved.format),
               "; got ", cols);
  }
  if (resolved.transform != TransformKind::kIdentity && cols % resolved.transform_block_size != 0) {
    return Bad("weight: expected a multiple of transform_block_size ",
               resolved.transform_block_size, " columns for ", NameOf(resolved.transform), "; got ",
               cols);
  }
  return absl::OkStatus();
}

bool IsDataAware(TransformKind kind) {
  return kind == TransformKind::kWus || kind == TransformKind::kWush;
}

bool NeedsSecondMoment(const Recipe& resolved) {
  return IsDataAware(resolved.transform) || resolved.method == Method::kGptq ||
         resolved.method == Method::kWaterSic;
}

bool NeedsFullSecondMoment(const Recipe& resolved) {
  return (IsDataAware(resolved.transform) && resolved.solver == Solver::kConditional) ||
         resolved.method == Method::kGptq || resolved.method == Method::kWaterSic;
}

bool ReadsDrift(const Recipe& resolved) {
  return resolved.method == Method::kWaterSic || NeedsDrift(resolved);
}

bool NeedsDrift(const Recipe& resolved) {
  return resolved.method == Method::kGptq && resolved.gptq.asymmetric;
}

bool ReadsResidual(const Recipe& resolved) { return resolved.method == Method::kWaterSic; }

}  // namespace quantd::compute
