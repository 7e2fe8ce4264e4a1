#include <array>

#include "absl/strings/str_cat.h"
#include "compute/recipe/recipe.h"

namespace quantd::compute {
namespace {

// Index = enumerator.
constexpr std::array<absl::string_view, 9> kFormats = {
    "mxfp4", "nvfp4", "int4", "int8", "fp8", "entropy-coded", "gaussian-grid", "int2", "int3"};
constexpr std::array<absl::string_view, 5> kTransforms = {"identity", "hadamard", "random", "wus",
                                                          "wush"};
constexpr std::array<absl::string_view, 4> kMethods = {"rtn", "gptq", "watersic", "higgs"};
constexpr std::array<absl::string_view, 2> kSolvers = {"marginal", "conditional"};
constexpr std::array<absl::string_view, 7> kScaleRules = {
    "amax", "ocp", "noclip", "absmax", "compressed-tensors", "gaussian-mse", "mse"};
constexpr std::array<absl::string_view, 3> kGranularities = {"group", "row", "block-128x128"};
constexpr std::array<absl::string_view, 2> kBlockOrders = {"ascending", "descending"};

template <typename Enum, size_t N>
absl::StatusOr<Enum> Parse(absl::string_view field, const std::array<absl::string_view, N>& names,
                           absl::string_view name) {
  std::string known;
  for (size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
    absl::StrAppend(&known, i == 0 ? "" : ", ", names[i]);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": expected one of ", known, "; got '", name.substr(0, 64), "'"));
}

// A newer peer may send what this build does not know.
template <typename Enum, size_t N>
absl::string_view Name(const std::array<absl::string_view, N>& names, Enum value) {
  const auto index = static_cast<size_t>(value);
  return index < N ? names[index] : "unknown";
}

}  // namespace

absl::string_view NameOf(Format format) { return Name(kFormats, format); }
absl::string_view NameOf(TransformKind kind) { return Name(kTransforms, kind); }
absl::string_view NameOf(Method method) { return Name(kMethods, method); }
absl::string_view NameOf(Solver solver) { return Name(kSolvers, solver); }
absl::string_view NameOf(ScaleRule rule) { return Name(kScaleRules, rule); }
absl::string_view NameOf(Granularity granularity) { return Name(kGranularities, granularity); }
absl::string_view NameOf(BlockOrder order) { return Name(kBlockOrders, order); }

absl::StatusOr<Format> ParseFormat(absl::string_view name) {
  return Parse<Format>("format", kFormats, name);
}
absl::StatusOr<TransformKind> ParseTransform(absl::string_view name) {
  return Parse<TransformKind>("transform", kTransforms, name);
}
absl::StatusOr<Method> ParseMethod(absl::string_view name) {
  return Parse<Method>("method", kMethods, name);
}
absl::StatusOr<Solver> ParseSolver(absl::string_view name) {
  return Parse<Solver>("solver", kSolvers, name);
}
absl::StatusOr<ScaleRule> ParseScaleRule(absl::string_view name) {
  return Parse<ScaleRule>("scale_rule", kScaleRules, name);
}
absl::StatusOr<Granularity> ParseGranularity(absl::string_view name) {
  return Parse<Granularity>("granularity", kGranularities, name);
}
absl::StatusOr<BlockOrder> ParseBlockOrder(absl::string_view name) {
  return Parse<BlockOrder>("gptq.order", kBlockOrders, name);
}

}  // namespace quantd::compute
