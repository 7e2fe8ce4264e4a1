#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quantd::compute {

enum class Format { kMxfp4, kNvfp4, kInt4, kInt8, kFp8 };
enum class TransformKind { kIdentity, kHadamard, kRandom, kWus, kWush };
enum class Method { kRtn, kGptq, kWaterSic };
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

// What to do to a layer: transform, method and number format with their options. A value type.
// `ResolveRecipe` turns what a user gave (optionals unset) into a complete recipe.
struct Recipe {
  Format format = Format::kMxfp4;
  TransformKind transform = TransformKind::kIdentity;
  Method method = Method::kRtn;
  Solver solver = Solver::kMarginal;
  std::optional<ScaleRule> scale_rule = std::nullopt;
  std::optional<Granularity> granularity = std::nullopt;
  // Columns that share a scale: 32 for MXFP4, 16 for NVFP4, 16..256 for INT. 0: the default. Read
  // with Granularity::kGroup only.
  int64_t group_size = 0;
  // Columns of one transform block B. 0: the group size, or 32 where scales span a row or block.
  int64_t transform_block_size = 0;
  // Relative damping l of the marginal solver. Unset: `auto`, picked per layer.
  std::optional<double> damping = std::nullopt;
  uint64_t seed = 0;
  double rate_bits = 0;  // WaterSIC

  friend bool operator==(const Recipe&, const Recipe&) = default;
};

// Fills every default and checks that the fields fit each other. INVALID_ARGUMENT names the field,
// what was expected and what came.
absl::StatusOr<Recipe> ResolveRecipe(const Recipe& recipe);

// Checks a resolved recipe against a layer of rows x cols. INVALID_ARGUMENT, as above.
absl::Status CheckGeometry(const Recipe& resolved, int64_t rows, int64_t cols);

// WUS and WUSH need a second moment; the conditional solver a full one.
bool NeedsSecondMoment(const Recipe& resolved);
bool NeedsFullSecondMoment(const Recipe& resolved);

// Names as users write them: "mxfp4", "wush", "rtn", "marginal", "gaussian-mse", "group".
absl::string_view NameOf(Format format);
absl::string_view NameOf(TransformKind kind);
absl::string_view NameOf(Method method);
absl::string_view NameOf(Solver solver);
absl::string_view NameOf(ScaleRule rule);
absl::string_view NameOf(Granularity granularity);
// INVALID_ARGUMENT lists the known names.
absl::StatusOr<Format> ParseFormat(absl::string_view name);
absl::StatusOr<TransformKind> ParseTransform(absl::string_view name);
absl::StatusOr<Method> ParseMethod(absl::string_view name);
absl::StatusOr<Solver> ParseSolver(absl::string_view name);
absl::StatusOr<ScaleRule> ParseScaleRule(absl::string_view name);
absl::StatusOr<Granularity> ParseGranularity(absl::string_view name);

// One line of JSON with every field of a resolved recipe; goes into result files and reports.
std::string ToJson(const Recipe& resolved);
// The inverse. INVALID_ARGUMENT.
absl::StatusOr<Recipe> RecipeFromJson(absl::string_view text);

}  // namespace quantd::compute
