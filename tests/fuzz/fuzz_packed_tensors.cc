// What `quantctl dequantize` reads: any recipe with any tensors is either refused or becomes a
// finite matrix of the shape that they name.
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "compute/pipeline/pipeline.h"
#include "tests/fuzz/byte_feed.h"
#include "tests/fuzz/check.h"

namespace {

using namespace quantd::compute;

template <typename Enum>
Enum TakeEnum(quantd::fuzz::ByteFeed& feed, Enum last) {
  return static_cast<Enum>(feed.Choice(static_cast<int>(last) + 1));
}

Recipe TakeRecipe(quantd::fuzz::ByteFeed& feed) {
  Recipe recipe;
  recipe.method = TakeEnum(feed, Method::kHiggs);
  recipe.format = TakeEnum(feed, Format::kInt3);
  if (const auto implied = ImpliedFormat(recipe.method)) recipe.format = *implied;
  recipe.transform = TakeEnum(feed, TransformKind::kWush);
  const uint8_t options = feed.Byte();
  if ((options & 1) != 0) recipe.granularity = TakeEnum(feed, Granularity::kBlock128);
  if ((options & 2) != 0) recipe.group_size = int64_t{1} << feed.Choice(12);
  if ((options & 4) != 0) recipe.scale_rule = TakeEnum(feed, ScaleRule::kMse);
  if ((options & 8) != 0) recipe.transform_block_size = int64_t{1} << feed.Choice(10);
  if (ImpliedFormat(recipe.method)) recipe.rate_bits = 2 + feed.Choice(3);
  if (recipe.method == Method::kHiggs) recipe.grid_dimension = 1 + feed.Choice(2);
  return recipe;
}

struct Expected {
  const char* name;
  DType dtype;
};
constexpr Expected kTensors[] = {
    {"weight_packed", DType::kU8},     {"weight_packed", DType::kF8E4M3},
    {"weight_scale", DType::kU8},      {"weight_scale", DType::kF8E4M3},
    {"weight_scale", DType::kBF16},    {"weight_scale", DType::kF32},
    {"weight_scale", DType::kF16},     {"weight_global_scale", DType::kF32},
    {"input_transform", DType::kF32},  {"z_stream", DType::kU8},
    {"z_segment_offset", DType::kU32}, {"z_frequency", DType::kU16},
    {"z_escape", DType::kI32},         {"row_scale", DType::kF16},
    {"col_scale", DType::kF16},        {"dead_columns", DType::kU16},
};

// Up to eight tensors with the names and kinds that results have, of any shape.
std::vector<NamedTensor> TakeTensors(quantd::fuzz::ByteFeed& feed) {
  std::vector<NamedTensor> tensors;
  const int count = feed.Choice(9);
  for (int i = 0; i < count; ++i) {
    const Expected& expected = kTensors[feed.Choice(std::size(kTensors))];
    const int rank = 1 + feed.Choice(3);
    std::vector<int64_t> shape;
    int64_t elements = 1;
    for (int axis = 0; axis < rank; ++axis) {
      shape.push_back(feed.Take<uint16_t>());
      elements *= shape.back();
      if (elements > 1 << 16) return tensors;
    }
    Tensor tensor = Tensor::Create(expected.dtype, shape).value();
    const std::string bytes = feed.Bytes(tensor.bytes().size());
    if (!bytes.empty()) std::memcpy(tensor.bytes().data(), bytes.data(), bytes.size());
    tensors.push_back({expected.name, std::move(tensor)});
  }
  return tensors;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quantd::fuzz::ByteFeed feed(data, size);
  const auto recipe = ResolveRecipe(TakeRecipe(feed));
  if (!recipe.ok()) return 0;
  const int64_t shape[] = {feed.Take<int16_t>(), feed.Take<int16_t>()};
  if (shape[0] * shape[1] > 1 << 14) return 0;
  std::vector<NamedTensor> tensors = TakeTensors(feed);
  Tensor stored = Tensor::Create(DType::kI64, {2}).value();
  std::memcpy(stored.bytes().data(), shape, sizeof(shape));
  tensors.push_back({"weight_shape", std::move(stored)});

  const auto weight = DequantizeResult(tensors, ToJson(*recipe));
  if (!weight.ok()) {
    quantd::fuzz::CheckRefusal(weight.status(), absl::StatusCode::kInvalidArgument,
                               absl::StatusCode::kDataLoss, absl::StatusCode::kNotFound);
    return 0;
  }
  FUZZ_CHECK(weight->shape() == std::vector<int64_t>(std::begin(shape), std::end(shape)));
  for (const float value : weight->as<float>()) FUZZ_CHECK(std::isfinite(value));
  return 0;
}
