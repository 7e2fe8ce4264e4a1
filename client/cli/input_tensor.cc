#include "client/cli/input_tensor.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

namespace quantd::cli {
namespace {

std::string Describe(const compute::SafetensorsEntry& entry) {
  // Names come from files of any origin and may be long.
  return absl::StrCat("`", entry.name.substr(0, 100), "` (", compute::NameOf(entry.dtype), " ",
                      absl::StrJoin(entry.shape, " x "), ")");
}

std::string DescribeAll(const std::vector<compute::SafetensorsEntry>& entries) {
  if (entries.empty()) return "the file holds no tensors";
  constexpr size_t kMost = 20;
  std::vector<std::string> names;
  for (const auto& entry : entries) {
    if (names.size() == kMost) {
      names.push_back(absl::StrCat("and ", entries.size() - kMost, " more"));
      break;
    }
    names.push_back(Describe(entry));
  }
  return absl::StrCat("the file holds ", absl::StrJoin(names, ", "));
}

const compute::SafetensorsEntry* FindEntry(const std::vector<compute::SafetensorsEntry>& entries,
                                           const std::string& name) {
  for (const auto& entry : entries) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

absl::Status CheckMatrix(const std::string& path, const compute::SafetensorsEntry& entry,
                         TensorRank rank) {
  if (!compute::IsFloat(entry.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected F64, F32, F16 or BF16, got ", Describe(entry)));
  }
  const size_t least = rank == TensorRank::kAny ? 1 : 2;
  if (entry.shape.size() == least || (rank != TensorRank::kMatrix && entry.shape.size() > least)) {
    return absl::OkStatus();
  }
  const absl::string_view expected = rank == TensorRank::kMatrix ? "a matrix (rank 2)"
                                     : rank == TensorRank::kMatrixOrMore
                                         ? "a matrix (rank 2 or more)"
                                         : "rank 1 or more";
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": expected ", expected, ", got ", Describe(entry)));
}

}  // namespace

int64_t InputTensor::rows() const {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < entry.shape.size(); ++i) rows *= entry.shape[i];
  return rows;
}

absl::StatusOr<std::unique_ptr<client::ByteSource>> InputTensor::Open() const {
  return client::FileSource(path, entry.offset, entry.size);
}

absl::StatusOr<InputTensor> PickTensor(const std::string& path, const std::string& wanted,
                                       const std::string& usual, TensorRank rank) {
  absl::StatusOr<compute::SafetensorsFile> file = compute::SafetensorsFile::Open(path);
  if (!file.ok()) return InFile(path, file.status());
  const auto& entries = file->header().entries;
  const std::string& name = wanted.empty() ? usual : wanted;
  const compute::SafetensorsEntry* entry = FindEntry(entries, name);
  std::string remark;
  if (entry == nullptr && wanted.empty() && entries.size() == 1) {
    entry = &entries.front();
    remark =
        absl::StrCat(path, ": no tensor `", usual, "`, taking the only one, ", Describe(*entry));
  }
  if (entry == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(path, ": no tensor `", name, "`; ", DescribeAll(entries)));
  }
  if (absl::Status status = CheckMatrix(path, *entry, rank); !status.ok()) return status;
  return InputTensor{path, *entry, std::move(remark)};
}

absl::Status InFile(const std::string& path, const absl::Status& status) {
  if (absl::StrContains(status.message(), path)) return status;
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

std::string LayerIdOf(absl::string_view weight_name) {
  if (weight_name == "weight") return "weight";
  absl::string_view prefix = absl::StripSuffix(weight_name, ".weight");
  if (prefix.empty()) prefix = "weight";
  std::string id(prefix.substr(0, 256));
  for (char& c : id) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') {
      c = '_';
    }
  }
  return id;
}

}  // namespace quantd::cli
