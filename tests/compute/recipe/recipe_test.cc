#include "compute/recipe/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace quantd::compute {
namespace {

using testing::HasSubstr;

constexpr Format kFormats[] = {Format::kMxfp4, Format::kNvfp4, Format::kInt2, Format::kInt3,
                               Format::kInt4,  Format::kInt8,  Format::kFp8};
constexpr TransformKind kTransforms[] = {TransformKind::kIdentity, TransformKind::kHadamard,
                                         TransformKind::kRandom, TransformKind::kWus,
                                         TransformKind::kWush};

void ExpectRefused(const Recipe& recipe, const std::string& field) {
  const absl::Status status = ResolveRecipe(recipe).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
  EXPECT_THAT(status.message(), HasSubstr(field + ": expected"));
}

TEST(ResolveRecipeTest, FillsEveryFieldOnce) {
  for (const Format format : kFormats) {
    for (const TransformKind transform : kTransforms) {
      const Recipe resolved = ResolveRecipe({.format = format, .transform = transform}).value();
      EXPECT_TRUE(resolved.scale_rule.has_value());
      EXPECT_TRUE(resolved.granularity.has_value());
      EXPECT_GT(resolved.transform_block_size, 0);
      EXPECT_EQ(resolved.group_size > 0, resolved.granularity == Granularity::kGroup);
      EXPECT_EQ(ResolveRecipe(resolved).value(), resolved);
    }
  }
}

TEST(ResolveRecipeTest, GroupSizesOfTheFormats) {
  EXPECT_EQ(ResolveRecipe({.format = Format::kMxfp4})->group_size, 32);
  EXPECT_EQ(ResolveRecipe({.format = Format::kNvfp4})->group_size, 16);
  EXPECT_EQ(ResolveRecipe({.format = Format::kNvfp4})->transform_block_size, 16);
  EXPECT_EQ(ResolveRecipe({.format = Format::kInt4})->group_size, 32);
  EXPECT_EQ(ResolveRecipe({.format = Format::kInt2})->scale_rule, ScaleRule::kGaussianMse);
  EXPECT_EQ(ResolveRecipe({.format = Format::kInt3})->scale_rule, ScaleRule::kCompressedTensors);
  EXPECT_EQ(ResolveRecipe({.format = Format::kInt4})->scale_rule, ScaleRule::kAbsmax);
  EXPECT_EQ(ResolveRecipe({.format = Format::kInt8, .group_size = 128})->transform_block_size, 128);
  EXPECT_EQ(ResolveRecipe({.format = Format::kFp8})->granularity, Granularity::kRow);
  EXPECT_EQ(ResolveRecipe({.format = Format::kFp8})->transform_block_size, 32);
}

TEST(ResolveRecipeTest, RefusesWhatDoesNotFit) {
  ExpectRefused({.format = Format::kMxfp4, .scale_rule = ScaleRule::kAbsmax}, "scale_rule");
  ExpectRefused({.format = Format::kInt4, .scale_rule = ScaleRule::kOcp}, "scale_rule");
  ExpectRefused({.format = Format::kFp8, .scale_rule = ScaleRule::kNoclip}, "scale_rule");
  ExpectRefused({.format = Format::kNvfp4, .granularity = Granularity::kRow}, "granularity");
  ExpectRefused({.format = Format::kFp8, .granularity = Granularity::kGroup}, "granularity");
  ExpectRefused({.format = Format::kInt8, .granularity = Granularity::kBlock128}, "granularity");
  ExpectRefused({.format = Format::kMxfp4, .group_size = 16}, "group_size");
  ExpectRefused({.format = Format::kInt4, .group_size = 8}, "group_size");
  ExpectRefused({.format = Format::kInt4, .group_size = 512}, "group_size");
  ExpectRefused({.format = Format::kInt4, .group_size = -32}, "group_size");
  ExpectRefused({.format = Format::kFp8, .group_size = 32}, "group_size");
  ExpectRefused({.transform = TransformKind::kWush, .transform_block_size = 24},
                "transform_block_size");
  ExpectRefused({.transform = TransformKind::kWus, .transform_block_size = 512},
                "transform_block_size");
  ExpectRefused({.format = Format::kEntropyCoded, .method = Method::kWaterSic}, "rate_bits");
  ExpectRefused({.rate_bits = 3}, "rate_bits");
}

TEST(ResolveRecipeTest, MethodsWithAFormatOfTheirOwn) {
  ExpectRefused({.method = Method::kWaterSic, .rate_bits = 3}, "format");
  ExpectRefused({.format = Format::kEntropyCoded}, "format");
  ExpectRefused({.format = Format::kGaussianGrid, .method = Method::kGptq}, "format");
  const Recipe watersic = {
      .format = *ImpliedFormat(Method::kWaterSic), .method = Method::kWaterSic, .rate_bits = 2.5};
  const Recipe resolved = ResolveRecipe(watersic).value();
  EXPECT_EQ(resolved.group_size, 0);
  EXPECT_EQ(resolved.scale_rule, std::nullopt);
  EXPECT_TRUE(CheckGeometry(resolved, 3, 5).ok());
  Recipe rotated = watersic;
  rotated.transform = TransformKind::kHadamard;
  ExpectRefused(rotated, "transform");
  Recipe grouped = watersic;
  grouped.group_size = 32;
  ExpectRefused(grouped, "group_size");

  Recipe higgs = {
      .format = *ImpliedFormat(Method::kHiggs), .method = Method::kHiggs, .rate_bits = 3};
  EXPECT_EQ(ResolveRecipe(higgs)->group_size, 256);
  EXPECT_EQ(ResolveRecipe(higgs)->grid_dimension, 1);
  EXPECT_FALSE(NeedsSecondMoment(*ResolveRecipe(higgs)));
  EXPECT_FALSE(CheckGeometry(*ResolveRecipe(higgs), 4, 384).ok());
  higgs.group_size = 96;
  ExpectRefused(higgs, "group_size");
  higgs.group_size = 128;
  higgs.grid_dimension = 3;
  ExpectRefused(higgs, "grid_dimension");
  higgs.grid_dimension = 2;
  higgs.rate_bits = 2.5;
  ExpectRefused(higgs, "rate_bits");
  ExpectRefused({.grid_dimension = 1}, "grid_dimension");
}

TEST(ResolveRecipeTest, GptqOptionsBelongToGptq) {
  ExpectRefused({.method = Method::kGptq, .gptq = {.damping = -0.1}}, "gptq.damping");
  ExpectRefused({.gptq = {.act_order = true}}, "gptq");
  const Recipe resolved =
      ResolveRecipe({.method = Method::kGptq,
                     .gptq = {.order = BlockOrder::kDescending, .act_order = true, .damping = 0.1}})
          .value();
  EXPECT_EQ(RecipeFromJson(ToJson(resolved)).value(), resolved);
}

TEST(ResolveRecipeTest, RefusesDampingOutOfRange) {
  for (const double damping : {0.0, -1.0, 1.5, std::nan(""), HUGE_VAL}) {
    ExpectRefused({.transform = TransformKind::kWush, .damping = damping}, "damping");
  }
  EXPECT_TRUE(ResolveRecipe({.transform = TransformKind::kWush, .damping = 1e-8}).ok());
}

TEST(CheckGeometryTest, ColumnsHaveToFit) {
  const Recipe mxfp4 = ResolveRecipe({.format = Format::kMxfp4}).value();
  EXPECT_TRUE(CheckGeometry(mxfp4, 1, 32).ok());
  EXPECT_THAT(CheckGeometry(mxfp4, 1, 48).message(), HasSubstr("group_size 32"));
  EXPECT_FALSE(CheckGeometry(mxfp4, 0, 32).ok());
  EXPECT_FALSE(CheckGeometry(mxfp4, 32, 0).ok());
  EXPECT_FALSE(CheckGeometry(mxfp4, (int64_t{1} << 20) + 1, 32).ok());

  const Recipe rows =
      ResolveRecipe({.format = Format::kInt4, .granularity = Granularity::kRow}).value();
  EXPECT_TRUE(CheckGeometry(rows, 3, 50).ok());
  EXPECT_THAT(CheckGeometry(rows, 3, 51).message(), HasSubstr("multiple of 2"));
  const Recipe int3 =
      ResolveRecipe({.format = Format::kInt3, .granularity = Granularity::kRow}).value();
  EXPECT_THAT(CheckGeometry(int3, 3, 50).message(), HasSubstr("multiple of 8"));
  const Recipe rotated = ResolveRecipe({.format = Format::kInt4,
                                        .transform = TransformKind::kHadamard,
                                        .granularity = Granularity::kRow})
                             .value();
  EXPECT_THAT(CheckGeometry(rotated, 3, 50).message(), HasSubstr("transform_block_size 32"));
}

TEST(NeedsSecondMomentTest, FollowsTransformSolverAndMethod) {
  EXPECT_FALSE(NeedsSecondMoment({.transform = TransformKind::kHadamard}));
  EXPECT_TRUE(NeedsSecondMoment({.transform = TransformKind::kWush}));
  EXPECT_FALSE(NeedsFullSecondMoment({.transform = TransformKind::kWush}));
  EXPECT_TRUE(
      NeedsFullSecondMoment({.transform = TransformKind::kWush, .solver = Solver::kConditional}));
  // The solver is not read without a data-aware transform.
  EXPECT_FALSE(NeedsFullSecondMoment({.solver = Solver::kConditional}));
  EXPECT_TRUE(NeedsFullSecondMoment({.method = Method::kGptq}));
}

TEST(RecipeJsonTest, ComesBackWhole) {
  for (const Format format : kFormats) {
    for (const TransformKind transform : kTransforms) {
      const Recipe recipe = ResolveRecipe({.format = format,
                                           .transform = transform,
                                           .solver = Solver::kConditional,
                                           .damping = 3e-4,
                                           .seed = std::numeric_limits<uint64_t>::max()})
                                .value();
      EXPECT_EQ(RecipeFromJson(ToJson(recipe)).value(), recipe);
    }
  }
  const Recipe automatic = ResolveRecipe({.transform = TransformKind::kWush}).value();
  EXPECT_EQ(RecipeFromJson(ToJson(automatic)).value(), automatic);
}

TEST(RecipeJsonTest, RefusesWhatIsNotARecipe) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"", "JSON object"},
      {"[]", "JSON object"},
      {"{\"format\"", "JSON object"},
      {"{}", "recipe.format: missing"},
      {R"({"format": 4})", "recipe.format: expected a name"},
      {R"({"format": "mxfp5"})", "mxfp4"},
      {R"({"format": "mxfp4", "group_size": -1})", "recipe.group_size"},
      {R"({"format": "mxfp4", "group_size": 1e99})", "recipe.group_size"},
      {R"({"format": "mxfp4", "damping": "x"})", "recipe.damping"},
      {R"({"format": "mxfp4", "seed": -4})", "recipe.seed"},
      {R"({"format": "mxfp4", "tempo": 1})", "unknown field 'tempo'"},
      {R"({"format": "mxfp4", "group_size": 64})", "group_size"}};
  for (const auto& [json, message] : bad) {
    const absl::Status status = RecipeFromJson(json).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_THAT(status.message(), HasSubstr(message)) << json;
  }
}

TEST(RecipeNamesTest, WhatIsNotKnownHasANameToo) {
  EXPECT_EQ(NameOf(static_cast<Method>(99)), "unknown");
  EXPECT_EQ(NameOf(static_cast<Format>(-1)), "unknown");
}

TEST(RecipeNamesTest, ParseBack) {
  for (const Format format : kFormats) EXPECT_EQ(ParseFormat(NameOf(format)).value(), format);
  for (const TransformKind kind : kTransforms)
    EXPECT_EQ(ParseTransform(NameOf(kind)).value(), kind);
  EXPECT_THAT(ParseTransform("wash").status().message(), HasSubstr("hadamard"));
}

}  // namespace
}  // namespace quantd::compute
