#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quantd::compute {

enum class Format {
  kMxfp4,
  kNvfp4,
  kInt4,
  kInt8,
  kFp8,
  kEntropyCoded,  // WaterSIC: integers on a grid of one spacing a column, under an entropy code
  kGaussianGrid,  // HIGGS: points of a grid that is optimal for Gaussian values
  kInt2,
  kInt3,
};
enum class TransformKind { kIdentity, kHadamard, kRandom, kWus, kWush };
enum class Method { kRtn, kGptq, kWaterSic, kHiggs };
enum class Solver { kMarginal, kConditional };
enum class ScaleRule {
  kAmax,               // NVFP4 and FP8: the largest magnitude of the group to that of the element
  kOcp,                // MXFP4: 2^(floor(log2 amax) - 2), elements saturate at 6
  kNoclip,             // MXFP4: 4/3 of a power of two, nothing saturates
  kAbsmax,             // INT: amax / (2^(b-1) - 1)
  kCompressedTensors,  // INT: amax / ((2^b - 1) / 2)
  kGaussianMse,        // INT: mean-squared-error optimal step for Gaussian values
  kMse,                // NVFP4 weights: of the scales around amax, the one of least squared error
};
enum class Granularity { kGroup, kRow, kBlock128 };
enum class BlockOrder {
  kAscending,   // error goes forward to later columns (the paper)
  kDescending,  // from the last block to the first (the published code)
};

// Options of GPTQ; all at their defaults with other methods.
struct GptqOptions {
  BlockOrder order = BlockOrder::kAscending;
  bool act_order = false;           // inputs of large second moment first
  double damping = 0.01;            // relative to the mean diagonal of the second moment
  bool allow_rtn_fallback = false;  // where no damping makes the second moment factor
  bool asymmetric = false;          // GPTAQ's term; needs a cross moment and a second moment hat

  friend bool operator==(const GptqOptions&, const GptqOptions&) = default;
};

// What to do to a layer: transform, method and number format with their options. A value type.
// `ResolveRecipe` turns what a user gave (optionals unset) into a complete recipe.
struct Recipe {
  Format format = Format::kMxfp4;  // the method's own where it has one (ImpliedFormat)
  TransformKind transform = TransformKind::kIdentity;
  Method method = Method::kRtn;
  Solver solver = Solver::kMarginal;
  std::optional<ScaleRule> scale_rule = std::nullopt;
  std::optional<Granularity> granularity = std::nullopt;
  // Columns that share a scale: 32 for MXFP4, 16 for NVFP4, 16..256 for INT, a power of two in
  // 32..1024 for HIGGS. 0: the default. Read with Granularity::kGroup only.
  int64_t group_size = 0;
  // Columns of one transform block B. 0: the group size, or 32 where scales span a row or block.
  int64_t transform_block_size = 0;
  // Relative damping l of the marginal solver. Unset: `auto`, picked per layer. WaterSIC: of the
  // second moment; unset: 1e-4.
  std::optional<double> damping = std::nullopt;
  uint64_t seed = 0;
  // Bits a weight: WaterSIC any in (0, 16], all that is stored included; HIGGS 2, 3 or 4 for the
  // codes.
  double rate_bits = 0;
  int64_t grid_dimension = 0;  // HIGGS: values that one code stands for, 1 (default) or 2
  GptqOptions gptq = {};
  // Reports of GPTQ and WaterSIC without the limits of rate-distortion theory, whose eigenvalues
  // take longer than the method on wide layers.
  bool skip_rate_theory = false;

  friend bool operator==(const Recipe&, const Recipe&) = default;
};

// The format that a method brings along; unset for methods that work with any number format.
std::optional<Format> ImpliedFormat(Method method);

// Fills every default and checks that the fields fit each other. INVALID_ARGUMENT names the field,
// what was expected and what came.
absl::StatusOr<Recipe> ResolveRecipe(const Recipe& recipe);

// Checks a resolved recipe against a layer of rows x cols. INVALID_ARGUMENT, as above.
absl::Status CheckGeometry(const Recipe& resolved, int64_t rows, int64_t cols);

// WUS and WUSH: made of the weight and its second moment.
bool IsDataAware(TransformKind kind);

// WUS, WUSH, GPTQ and WaterSIC need a second moment; the conditional solver and the two methods a
// full one.
bool NeedsSecondMoment(const Recipe& resolved);
bool NeedsFullSecondMoment(const Recipe& resolved);
// WaterSIC and GPTQ's asymmetric term read the moments of drift (second_moment_hat, cross_moment);
// the latter cannot do without. WaterSIC alone reads a residual moment.
bool ReadsDrift(const Recipe& resolved);
bool NeedsDrift(const Recipe& resolved);
bool ReadsResidual(const Recipe& resolved);

// Names as users write them: "mxfp4", "wush", "rtn", "marginal", "gaussian-mse", "group".
absl::string_view NameOf(Format format);
absl::string_view NameOf(TransformKind kind);
absl::string_view NameOf(Method method);
absl::string_view NameOf(Solver solver);
absl::string_view NameOf(ScaleRule rule);
absl::string_view NameOf(Granularity granularity);
absl::string_view NameOf(BlockOrder order);
// INVALID_ARGUMENT lists the known names.
absl::StatusOr<Format> ParseFormat(absl::string_view name);
absl::StatusOr<TransformKind> ParseTransform(absl::string_view name);
absl::StatusOr<Method> ParseMethod(absl::string_view name);
absl::StatusOr<Solver> ParseSolver(absl::string_view name);
absl::StatusOr<ScaleRule> ParseScaleRule(absl::string_view name);
absl::StatusOr<Granularity> ParseGranularity(absl::string_view name);
absl::StatusOr<BlockOrder> ParseBlockOrder(absl::string_view name);

// One line of JSON with every field of a resolved recipe; goes into result files and reports.
std::string ToJson(const Recipe& resolved);
// The inverse. INVALID_ARGUMENT.
absl::StatusOr<Recipe> RecipeFromJson(absl::string_view text);

}  // namespace quantd::compute
