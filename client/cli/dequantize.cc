#include "client/cli/dequantize.h"

#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/input_tensor.h"
#include "compute/formats/safetensors.h"
#include "compute/pipeline/pipeline.h"

namespace quantd::cli {
namespace {

using compute::NamedTensor;

// "a.b.weight_packed" is the tensor "weight_packed" of the layer "a.b".
std::pair<std::string, std::string> SplitName(const std::string& name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string::npos) return {"", name};
  return {name.substr(0, dot), name.substr(dot + 1)};
}

// A layer's own recipe, or the one of the whole file.
absl::StatusOr<std::string> RecipeOf(const std::map<std::string, std::string>& metadata,
                                     const std::string& layer) {
  for (const std::string& key :
       {layer.empty() ? "recipe" : layer + ".recipe", std::string("recipe")}) {
    if (const auto found = metadata.find(key); found != metadata.end()) return found->second;
  }
  return absl::InvalidArgumentError("no `recipe` in the metadata: this is no result of quantd");
}

}  // namespace

absl::Status Dequantize(const std::string& in, const std::string& out) {
  const absl::StatusOr<compute::SafetensorsFile> file = compute::SafetensorsFile::Open(in);
  if (!file.ok()) return InFile(in, file.status());
  std::map<std::string, std::vector<NamedTensor>> layers;
  for (const auto& entry : file->header().entries) {
    absl::StatusOr<compute::Tensor> tensor = file->Read(entry.name);
    if (!tensor.ok()) return InFile(in, tensor.status());
    auto [layer, name] = SplitName(entry.name);
    layers[layer].push_back({std::move(name), *std::move(tensor)});
  }
  if (layers.empty()) return absl::InvalidArgumentError(absl::StrCat(in, ": no tensors"));

  std::vector<NamedTensor> weights;
  for (auto& [layer, tensors] : layers) {
    const absl::StatusOr<std::string> recipe = RecipeOf(file->header().metadata, layer);
    if (!recipe.ok()) return InFile(in, recipe.status());
    absl::StatusOr<compute::Tensor> weight = compute::DequantizeResult(tensors, *recipe);
    if (!weight.ok()) {
      return InFile(layer.empty() ? in : absl::StrCat(in, ": ", layer), weight.status());
    }
    const bool prefixed = layers.size() > 1 && !layer.empty();
    weights.push_back({prefixed ? layer + ".weight" : "weight", *std::move(weight)});
    tensors.clear();
  }
  std::vector<const NamedTensor*> pointers;
  pointers.reserve(weights.size());
  for (const NamedTensor& weight : weights) pointers.push_back(&weight);

  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(out).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  return compute::WriteSafetensors(out, pointers, {{"format", "pt"}});
}

}  // namespace quantd::cli
