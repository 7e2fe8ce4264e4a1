#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compute/formats/safetensors.h"

namespace quantd::compute {
namespace {

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxSafetensorsRank = 8;
constexpr size_t kMaxNamesInError = 16;
constexpr absl::string_view kMetadataName = "__metadata__";

// What a file says goes into messages only shortened and escaped.
std::string Shown(absl::string_view text) {
  return absl::StrCat("'", absl::Utf8SafeCEscape(text.substr(0, 64)),
                      text.size() > 64 ? "...'" : "'");
}

struct RawEntry {
  std::string name;
  std::optional<DType> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::vector<int64_t>> offsets;  // data_offsets: relative to the end of the header
};

// Builds entries while the parser runs, without a tree in between: a header of untrusted origin
// costs no more memory than what it validly describes. Depths: 1 the header, 2 an entry or the
// metadata, 3 the lists of an entry.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<RawEntry> TakeEntries() { return std::move(entries_); }
  std::map<std::string, std::string> TakeMetadata() { return std::move(metadata_); }
  const absl::Status& status() const { return status_; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_float(number_float_t, const string_t&) override { return Unexpected("a fraction"); }
  bool binary(binary_t&) override { return Unexpected("binary"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (list_ == nullptr) return Unexpected("a number");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail(absl::StrCat("number ", value, " exceeds 63 bits in ", Where()));
    }
    if (list_->size() == kMaxSafetensorsRank) {
      return Fail(absl::StrCat("expected at most ", kMaxSafetensorsRank, " numbers in ", Where()));
    }
    list_->push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      if (metadata_.try_emplace(key_, std::move(value)).second) return true;
      return Fail(absl::StrCat("metadata ", Shown(key_), " occurs twice"));
    }
    if (depth_ != 2 || key_ != "dtype") return Unexpected("a string");
    if (entries_.back().dtype.has_value()) return Fail(absl::StrCat(Where(), " occurs twice"));
    const absl::StatusOr<DType> dtype = ParseDType(value);
    if (!dtype.ok()) return Fail(absl::StrCat(Where(), ": ", dtype.status().message()));
    entries_.back().dtype = *dtype;
    return true;
  }

  bool start_object(std::size_t) override {
    if (depth_ > 1 || list_ != nullptr) return Unexpected("an object");
    if (++depth_ == 1) return true;
    in_metadata_ = key_ == kMetadataName;
    if (in_metadata_) {
      if (std::exchange(seen_metadata_, true)) return Fail("__metadata__ occurs twice");
      return true;
    }
    if (!names_.insert(key_).second) return Fail(absl::StrCat(Shown(key_), " occurs twice"));
    entries_.emplace_back().name = key_;
    return true;
  }

  bool end_object() override {
    if (--depth_ == 0 || in_metadata_) return true;
    const RawEntry& entry = entries_.back();
    if (entry.dtype.has_value() && entry.shape.has_value() && entry.offsets.has_value())
      return true;
    return Fail(absl::StrCat(Shown(entry.name), ": expected dtype, shape and data_offsets"));
  }

  bool start_array(std::size_t) override {
    if (depth_ != 2 || in_metadata_ || list_ != nullptr) return Unexpected("a list");
    if (key_ != "shape" && key_ != "data_offsets") return Unexpected("a list");
    RawEntry& entry = entries_.back();
    std::optional<std::vector<int64_t>>& list = key_ == "shape" ? entry.shape : entry.offsets;
    if (list.has_value()) return Fail(absl::StrCat(Where(), " occurs twice"));
    list_ = &list.emplace();
    return true;
  }

  bool end_array() override {
    list_ = nullptr;
    return true;
  }

  bool key(string_t& value) override {
    key_ = std::move(value);
    const bool known = key_ == "dtype" || key_ == "shape" || key_ == "data_offsets";
    if (depth_ == 2 && !in_metadata_ && !known) {
      return Fail(absl::StrCat(Where(), ": expected dtype, shape or data_offsets"));
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    return Fail(absl::StrCat("expected JSON; broken at byte ", position));
  }

 private:
  std::string Where() const {
    if (depth_ == 2 && !in_metadata_)
      return absl::StrCat(Shown(entries_.back().name), ".", Shown(key_));
    return depth_ == 0 ? std::string("the header") : Shown(key_);
  }
  bool Unexpected(absl::string_view what) {
    return Fail(absl::StrCat("did not expect ", what, " in ", Where()));
  }
  bool Fail(absl::string_view message) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat("safetensors header: ", message));
    }
    return false;
  }

  int depth_ = 0;
  bool in_metadata_ = false;
  bool seen_metadata_ = false;
  std::string key_;
  std::vector<int64_t>* list_ = nullptr;  // within entries_.back(), while inside a list
  std::set<std::string> names_;
  std::vector<RawEntry> entries_;
  std::map<std::string, std::string> metadata_;
  absl::Status status_;
};

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("safetensors header: ", parts...));
}

// Not DenseBytes: a file may hold tensors of more dimensions than this library computes with.
absl::StatusOr<int64_t> BytesOf(const RawEntry& raw) {
  int64_t bytes = static_cast<int64_t>(SizeOf(*raw.dtype));
  const bool empty = std::find(raw.shape->begin(), raw.shape->end(), 0) != raw.shape->end();
  if (empty) return 0;
  for (int64_t dim : *raw.shape) {
    if (__builtin_mul_overflow(bytes, dim, &bytes)) {
      return Bad(Shown(raw.name), ": shape [", absl::StrJoin(*raw.shape, ", "),
                 "] overflows 64 bits");
    }
  }
  return bytes;
}

absl::StatusOr<SafetensorsEntry> CheckEntry(RawEntry raw, int64_t data_begin, int64_t data_size) {
  if (raw.offsets->size() != 2 || (*raw.offsets)[0] > (*raw.offsets)[1] ||
      (*raw.offsets)[1] > data_size) {
    return Bad(Shown(raw.name), ": expected data_offsets [begin, end] within ", data_size,
               " bytes; got [", absl::StrJoin(*raw.offsets, ", "), "]");
  }
  const absl::StatusOr<int64_t> bytes = BytesOf(raw);
  if (!bytes.ok()) return bytes.status();
  const int64_t size = (*raw.offsets)[1] - (*raw.offsets)[0];
  if (size != *bytes) {
    return Bad(Shown(raw.name), ": expected ", *bytes, " bytes for shape [",
               absl::StrJoin(*raw.shape, ", "), "] of ", NameOf(*raw.dtype), "; got ", size);
  }
  return SafetensorsEntry{std::move(raw.name), *raw.dtype, *std::move(raw.shape),
                          data_begin + (*raw.offsets)[0], size};
}

absl::Status CheckContiguous(const std::vector<SafetensorsEntry>& entries, int64_t begin,
                             int64_t file_size) {
  int64_t expected = begin;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.offset != expected) {
      return Bad(Shown(entry.name), ": expected data at byte ", expected, " of the file; got ",
                 entry.offset, entry.offset < expected ? " (an overlap)" : " (a gap)");
    }
    expected += entry.size;
  }
  if (expected == file_size) return absl::OkStatus();
  return Bad("expected the file to end behind its last tensor, at byte ", expected, "; it has ",
             file_size);
}

}  // namespace

absl::StatusOr<const SafetensorsEntry*> SafetensorsHeader::Find(absl::string_view name) const {
  for (const SafetensorsEntry& entry : entries) {
    if (entry.name == name) return &entry;
  }
  std::string known;
  for (size_t i = 0; i < entries.size() && i < kMaxNamesInError; ++i) {
    absl::StrAppend(&known, i == 0 ? "" : ", ", Shown(entries[i].name));
  }
  if (entries.size() > kMaxNamesInError) {
    absl::StrAppend(&known, " and ", entries.size() - kMaxNamesInError, " more");
  }
  return absl::NotFoundError(
      absl::StrCat("no tensor ", Shown(name), "; the file holds ", known.empty() ? "none" : known));
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::Span<const std::byte> file_prefix,
                                                         int64_t file_size) {
  static_assert(std::endian::native == std::endian::little);
  if (file_size < kLengthBytes || file_prefix.size() < kLengthBytes) {
    return Bad("expected at least ", kLengthBytes, " bytes; the file has ", file_size);
  }
  uint64_t length;
  std::memcpy(&length, file_prefix.data(), kLengthBytes);
  const int64_t most = std::min(kMaxHeaderBytes, file_size - kLengthBytes);
  if (length > static_cast<uint64_t>(most)) {
    return Bad("expected a header of at most ", most, " bytes; got length ", length);
  }
  const auto header_size = static_cast<int64_t>(length);
  if (static_cast<int64_t>(file_prefix.size()) - kLengthBytes < header_size) {
    return Bad("expected ", header_size, " bytes of JSON; got ", file_prefix.size() - kLengthBytes);
  }
  const auto* text = reinterpret_cast<const char*>(file_prefix.data() + kLengthBytes);
  if (header_size < 2 || text[0] != '{') return Bad("expected a JSON object");
  HeaderHandler handler;
  if (!nlohmann::json::sax_parse(text, text + header_size, &handler)) {
    return handler.status().ok() ? Bad("expected JSON") : handler.status();
  }

  const int64_t data_begin = kLengthBytes + header_size;
  SafetensorsHeader header;
  header.metadata = handler.TakeMetadata();
  for (RawEntry& raw : handler.TakeEntries()) {
    absl::StatusOr<SafetensorsEntry> entry =
        CheckEntry(std::move(raw), data_begin, file_size - data_begin);
    if (!entry.ok()) return entry.status();
    header.entries.push_back(*std::move(entry));
  }
  std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.offset, a.size, a.name) < std::tie(b.offset, b.size, b.name);
  });
  if (absl::Status status = CheckContiguous(header.entries, data_begin, file_size); !status.ok()) {
    return status;
  }
  return header;
}

}  // namespace quantd::compute
