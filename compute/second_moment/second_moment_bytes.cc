// The durable form of a second moment; grammar in docs/formats.md.
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "compute/second_moment/second_moment.h"

namespace quantd::compute {
namespace {

static_assert(std::endian::native == std::endian::little, "the durable form is little-endian");

constexpr char kMagic[8] = {'Q', 'U', 'A', 'N', 'T', 'D', 'S', 'M'};
constexpr uint32_t kVersion = 1;

struct Header {
  char magic[8];
  uint32_t version;
  uint8_t layout;
  uint8_t pending_is_f64;
  uint16_t zero;
  int64_t block_size;
  int64_t cols;
  int64_t sample_capacity;
  uint64_t sample_seed;
  int64_t tokens;
  uint64_t digest_low;
  uint64_t digest_high;
  int64_t pending_rows;
  int64_t sample_rows;
};
static_assert(sizeof(Header) == 88);

int64_t BlockWidth(const MomentSpec& spec) {
  return spec.layout == MomentLayout::kFull ? spec.cols : spec.block_size;
}

// All factors were checked against their limits, so that nothing overflows.
int64_t BytesOf(const MomentSpec& spec, int64_t pending_rows, bool pending_is_f64,
                int64_t sample_rows) {
  const int64_t width = BlockWidth(spec);
  const int64_t triangles = spec.cols / width * (width * (width + 1) / 2) * 8;
  const int64_t pending = pending_rows * spec.cols * (pending_is_f64 ? 8 : 4);
  const int64_t sample = sample_rows * (8 + spec.cols * 4);
  return static_cast<int64_t>(sizeof(Header)) + triangles + pending + sample + 8;
}

template <typename... Parts>
absl::Status Lost(const Parts&... parts) {
  return absl::DataLossError(absl::StrCat("second moment: ", parts...));
}

absl::StatusOr<Header> ParseHeader(absl::string_view bytes) {
  Header h;
  if (bytes.size() < sizeof(h) + 8) {
    return Lost("expected at least ", sizeof(h) + 8, " bytes; got ", bytes.size());
  }
  std::memcpy(&h, bytes.data(), sizeof(h));
  if (std::memcmp(h.magic, kMagic, sizeof(kMagic)) != 0) return Lost("not a second moment");
  if (h.version != kVersion) return Lost("expected version ", kVersion, "; got ", h.version);
  if (h.layout > 1 || h.pending_is_f64 > 1 || h.zero != 0) return Lost("malformed header");
  if (h.tokens < 0 || h.pending_rows < 0 || h.pending_rows >= kSliceTokens ||
      h.pending_rows > h.tokens || h.sample_rows < 0 || h.sample_rows > h.sample_capacity) {
    return Lost("counts do not fit: ", h.tokens, " tokens, ", h.pending_rows, " pending rows, ",
                h.sample_rows, " sample rows");
  }
  return h;
}

// Copies from a string that was measured to hold everything.
class Cursor {
 public:
  explicit Cursor(const char* at) : at_(at) {}
  template <typename T>
  void Read(T* to, int64_t count) {
    if (count > 0) std::memcpy(to, at_, count * sizeof(T));  // `to` may be null otherwise
    at_ += count * sizeof(T);
  }

 private:
  const char* at_;
};

bool FitsFloat(absl::Span<const double> values) {
  return std::all_of(values.begin(), values.end(),
                     [](double v) { return static_cast<double>(static_cast<float>(v)) == v; });
}

template <typename T>
void Append(std::string& bytes, const T* from, int64_t count) {
  bytes.append(reinterpret_cast<const char*>(from), count * sizeof(T));
}

}  // namespace

int64_t SecondMoment::SerializedBytes() const {
  return BytesOf(spec_, pending_rows(), !FitsFloat(pending_), sample_.size());
}

std::string SecondMoment::Serialize() const {
  Header h = {};
  std::memcpy(h.magic, kMagic, sizeof(kMagic));
  h.version = kVersion;
  h.layout = static_cast<uint8_t>(spec_.layout);
  h.pending_is_f64 = !FitsFloat(pending_);
  h.block_size = spec_.block_size;
  h.cols = spec_.cols;
  h.sample_capacity = spec_.sample_rows;
  h.sample_seed = spec_.sample_seed;
  h.tokens = tokens_;
  h.digest_low = static_cast<uint64_t>(digest_);
  h.digest_high = static_cast<uint64_t>(digest_ >> 64);
  h.pending_rows = pending_rows();
  h.sample_rows = sample_.size();

  std::string bytes;
  bytes.reserve(BytesOf(spec_, h.pending_rows, h.pending_is_f64 != 0, h.sample_rows));
  Append(bytes, &h, 1);
  const int64_t width = BlockWidth(spec_);
  for (int64_t row = 0; row < spec_.cols; ++row) {
    Append(bytes, sum_.data() + row * width, row % width + 1);
  }
  if (h.pending_is_f64 != 0) {
    Append(bytes, pending_.data(), static_cast<int64_t>(pending_.size()));
  } else {
    const std::vector<float> narrow(pending_.begin(), pending_.end());
    Append(bytes, narrow.data(), static_cast<int64_t>(narrow.size()));
  }
  for (const RowSample::Row& row : sample_.rows()) {
    Append(bytes, &row.priority, 1);
    Append(bytes, row.values.data(), spec_.cols);
  }
  const uint64_t checksum = XXH3_64bits(bytes.data(), bytes.size());
  Append(bytes, &checksum, 1);
  return bytes;
}

absl::StatusOr<SecondMoment> SecondMoment::Parse(absl::string_view bytes) {
  absl::StatusOr<Header> h = ParseHeader(bytes);
  if (!h.ok()) return h.status();
  const MomentSpec spec = {.layout = static_cast<MomentLayout>(h->layout),
                           .block_size = h->block_size,
                           .cols = h->cols,
                           .sample_rows = h->sample_capacity,
                           .sample_seed = h->sample_seed};
  if (absl::Status status = spec.Validate(); !status.ok()) return Lost(status.message());
  const int64_t expected = BytesOf(spec, h->pending_rows, h->pending_is_f64 != 0, h->sample_rows);
  if (static_cast<int64_t>(bytes.size()) != expected) {
    return Lost("expected ", expected, " bytes; got ", bytes.size());
  }
  uint64_t checksum;
  std::memcpy(&checksum, bytes.data() + bytes.size() - 8, 8);
  if (checksum != XXH3_64bits(bytes.data(), bytes.size() - 8)) return Lost("checksum mismatch");

  absl::StatusOr<SecondMoment> moment = Create(spec);
  if (!moment.ok()) return moment.status();
  moment->tokens_ = h->tokens;
  moment->digest_ = (static_cast<unsigned __int128>(h->digest_high) << 64) | h->digest_low;
  Cursor cursor(bytes.data() + sizeof(Header));
  const int64_t width = BlockWidth(spec);
  std::vector<double>& sum = moment->sum_;
  for (int64_t row = 0; row < spec.cols; ++row) {
    const int64_t first = row / width * width;  // of the row's block
    cursor.Read(sum.data() + row * width, row % width + 1);
    for (int64_t j = 0; j < row % width; ++j) {
      sum[(first + j) * width + row % width] = sum[row * width + j];
    }
  }
  std::vector<double> pending(h->pending_rows * spec.cols);
  if (h->pending_is_f64 != 0) {
    cursor.Read(pending.data(), static_cast<int64_t>(pending.size()));
  } else {
    std::vector<float> narrow(pending.size());
    cursor.Read(narrow.data(), static_cast<int64_t>(narrow.size()));
    pending.assign(narrow.begin(), narrow.end());
  }
  moment->SetPending(std::move(pending));
  for (int64_t i = 0; i < h->sample_rows; ++i) {
    uint64_t priority;
    std::vector<float> values(spec.cols);
    cursor.Read(&priority, 1);
    cursor.Read(values.data(), spec.cols);
    if (FindNonFinite(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), spec.cols) >=
        0) {
      return Lost("sample row ", i, " is not finite");
    }
    moment->sample_.Add(priority, std::move(values));
  }
  for (absl::Span<const double> values : {absl::MakeConstSpan(sum), moment->pending()}) {
    if (FindNonFinite(DType::kF64, reinterpret_cast<const std::byte*>(values.data()),
                      static_cast<int64_t>(values.size())) >= 0) {
      return Lost("the sum is not finite");
    }
  }
  return moment;
}

}  // namespace quantd::compute
