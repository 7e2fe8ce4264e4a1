#include "compute/formats/safetensors_layout.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compute/formats/safetensors.h"

namespace quantd::compute {
namespace {

constexpr size_t kAlignment = 8;

// A JSON string. The library would throw on broken UTF-8 or replace it, and a replaced name would
// no longer be the tensor's.
absl::StatusOr<std::string> Quote(absl::string_view text) {
  using Handler = nlohmann::json::error_handler_t;
  const nlohmann::json value = std::string(text);
  std::string quoted = value.dump(-1, ' ', false, Handler::replace);
  if (quoted != value.dump(-1, ' ', false, Handler::ignore)) {
    return absl::InvalidArgumentError(absl::StrCat("safetensors: expected UTF-8; got '",
                                                   absl::CHexEscape(text.substr(0, 64)), "'"));
  }
  return quoted;
}

absl::Status AppendMetadata(const std::map<std::string, std::string>& metadata, std::string& json) {
  absl::string_view separator = "\"__metadata__\":{";
  for (const auto& [key, value] : metadata) {
    const absl::StatusOr<std::string> quoted_key = Quote(key);
    if (!quoted_key.ok()) return quoted_key.status();
    const absl::StatusOr<std::string> quoted_value = Quote(value);
    if (!quoted_value.ok()) return quoted_value.status();
    absl::StrAppend(&json, separator, *quoted_key, ":", *quoted_value);
    separator = ",";
  }
  if (!metadata.empty()) json += '}';
  return absl::OkStatus();
}

absl::Status AppendEntry(const NamedTensor& named, int64_t begin, std::string& json) {
  const absl::StatusOr<std::string> name = Quote(named.name);
  if (!name.ok()) return name.status();
  if (named.name == "__metadata__") {
    return absl::InvalidArgumentError("safetensors: the name __metadata__ is reserved");
  }
  const Tensor& tensor = named.tensor;
  absl::StrAppend(&json, json.size() > 1 ? "," : "", *name, ":{\"dtype\":\"",
                  NameOf(tensor.dtype()), "\",\"shape\":[", absl::StrJoin(tensor.shape(), ","),
                  "],\"data_offsets\":[", begin, ",", begin + tensor.bytes().size(), "]}");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsLayout> LayOutSafetensors(
    absl::Span<const NamedTensor* const> tensors,
    const std::map<std::string, std::string>& metadata) {
  SafetensorsLayout layout;
  layout.order.assign(tensors.begin(), tensors.end());
  // Wide elements first keeps every tensor aligned without gaps.
  std::sort(layout.order.begin(), layout.order.end(), [](const auto* a, const auto* b) {
    const size_t width_a = SizeOf(a->tensor.dtype());
    const size_t width_b = SizeOf(b->tensor.dtype());
    return width_a != width_b ? width_a > width_b : a->name < b->name;
  });
  std::vector<absl::string_view> names;
  for (const NamedTensor* tensor : tensors) names.emplace_back(tensor->name);
  std::sort(names.begin(), names.end());
  if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end()) {
    return absl::InvalidArgumentError(absl::StrCat("safetensors: two tensors are named ", *twice));
  }

  std::string json = "{";
  if (absl::Status status = AppendMetadata(metadata, json); !status.ok()) return status;
  int64_t begin = 0;
  for (const NamedTensor* tensor : layout.order) {
    if (absl::Status status = AppendEntry(*tensor, begin, json); !status.ok()) return status;
    begin += static_cast<int64_t>(tensor->tensor.bytes().size());
  }
  json += '}';
  json.append((kAlignment - json.size() % kAlignment) % kAlignment, ' ');
  const uint64_t length = json.size();
  layout.header.resize(sizeof(length));
  std::memcpy(layout.header.data(), &length, sizeof(length));
  layout.header += json;
  return layout;
}

absl::StatusOr<std::string> SerializeSafetensors(
    absl::Span<const NamedTensor* const> tensors,
    const std::map<std::string, std::string>& metadata) {
  absl::StatusOr<SafetensorsLayout> layout = LayOutSafetensors(tensors, metadata);
  if (!layout.ok()) return layout.status();
  std::string file = std::move(layout->header);
  size_t size = file.size();
  for (const NamedTensor* tensor : layout->order) size += tensor->tensor.bytes().size();
  file.reserve(size);
  for (const NamedTensor* tensor : layout->order) {
    const absl::Span<const std::byte> bytes = tensor->tensor.bytes();
    file.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return file;
}

}  // namespace quantd::compute
