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
constexpr uint32_t kVersion = 2;

struct Header {
  char magic[8];
  uint32_t version;
  uint8_t layout;
  uint8_t pending_is_f64;
  uint8_t kind;  // of version 1: 0
  uint8_t zero;
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

// Behind the header since version 2.
struct PairedHeader {
  int64_t paired_cols;
  double weight_sum;
};
static_assert(sizeof(PairedHeader) == 16);

int64_t HeaderBytes(uint32_t version) {
  return static_cast<int64_t>(sizeof(Header) + (version == 1 ? 0 : sizeof(PairedHeader)));
}

int64_t BlockWidth(const MomentSpec& spec) {
  return spec.layout == MomentLayout::kFull ? spec.cols : spec.block_size;
}

// All factors were checked against their limits, so that nothing overflows.
int64_t BytesOf(uint32_t version, const MomentSpec& spec, int64_t pending_rows, bool pending_is_f64,
                int64_t sample_rows) {
  const int64_t width = BlockWidth(spec);
  const int64_t stored =
      spec.is_paired() ? spec.SumElements() : spec.cols / width * (width * (width + 1) / 2);
  const int64_t pending = pending_rows * spec.TokenValues() * (pending_is_f64 ? 8 : 4);
  const int64_t sample = sample_rows * (8 + spec.cols * 4);
  return HeaderBytes(version) + stored * 8 + pending + sample + 8;
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
  if (h.version < 1 || h.version > kVersion) {
    return Lost("expected version 1..", kVersion, "; got ", h.version);
  }
  if (h.layout > 1 || h.pending_is_f64 > 1 || h.kind > (h.version == 1 ? 0 : 3) || h.zero != 0) {
    return Lost("malformed header");
  }
  if (h.tokens < 0 || h.pending_rows < 0 || h.pending_rows >= kSliceTokens ||
      h.pending_rows > h.tokens || h.sample_rows < 0 || h.sample_rows > h.sample_capacity) {
    return Lost("counts do not fit: ", h.tokens, " tokens, ", h.pending_rows, " pending rows, ",
                h.sample_rows, " sample rows");
  }
  return h;
}

absl::StatusOr<PairedHeader> ParsePairedHeader(const Header& h, absl::string_view bytes) {
  PairedHeader paired = {};
  if (h.version == 1) return paired;
  if (static_cast<int64_t>(bytes.size()) < HeaderBytes(h.version) + 8) {
    return Lost("expected at least ", HeaderBytes(h.version) + 8, " bytes; got ", bytes.size());
  }
  std::memcpy(&paired, bytes.data() + sizeof(Header), sizeof(paired));
  const bool weighted = h.kind == static_cast<uint8_t>(MomentKind::kWeighted);
  if (!std::isfinite(paired.weight_sum) || paired.weight_sum < 0 ||
      (!weighted && paired.weight_sum != 0)) {
    return Lost("the sum of the token weights is ", paired.weight_sum);
  }
  return paired;
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

// The upper triangle from the lower, a square at a time: both of its ends stay in the cache.
void Mirror(double* matrix, int64_t width) {
  constexpr int64_t kSquare = 32;
  for (int64_t r0 = 0; r0 < width; r0 += kSquare) {
    for (int64_t c0 = 0; c0 <= r0; c0 += kSquare) {
      for (int64_t r = r0; r < std::min(r0 + kSquare, width); ++r) {
        for (int64_t c = c0; c < std::min(c0 + kSquare, r); ++c) {
          matrix[c * width + r] = matrix[r * width + c];
        }
      }
    }
  }
}

// All of it, or lower triangles and what they say about the upper.
void ReadSum(const MomentSpec& spec, Cursor& cursor, std::vector<double>& sum) {
  if (spec.is_paired()) return cursor.Read(sum.data(), spec.SumElements());
  const int64_t width = BlockWidth(spec);
  for (int64_t first = 0; first < spec.cols; first += width) {
    double* const block = sum.data() + first * width;
    for (int64_t row = 0; row < width; ++row) cursor.Read(block + row * width, row + 1);
    Mirror(block, width);
  }
}

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
  return BytesOf(kVersion, spec_, pending_rows(), !FitsFloat(pending_), sample_.size());
}

std::string SecondMoment::Serialize() const {
  Header h = {};
  std::memcpy(h.magic, kMagic, sizeof(kMagic));
  h.version = kVersion;
  h.layout = static_cast<uint8_t>(spec_.layout);
  h.kind = static_cast<uint8_t>(spec_.kind);
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
  const PairedHeader paired = {.paired_cols = spec_.paired_cols, .weight_sum = weight_sum_};

  std::string bytes;
  bytes.reserve(BytesOf(kVersion, spec_, h.pending_rows, h.pending_is_f64 != 0, h.sample_rows));
  Append(bytes, &h, 1);
  Append(bytes, &paired, 1);
  if (spec_.is_paired()) {
    Append(bytes, sum_.data(), spec_.SumElements());
  } else {
    const int64_t width = BlockWidth(spec_);
    for (int64_t row = 0; row < spec_.cols; ++row) {
      Append(bytes, sum_.data() + row * width, row % width + 1);
    }
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
  absl::StatusOr<PairedHeader> paired = ParsePairedHeader(*h, bytes);
  if (!paired.ok()) return paired.status();
  const MomentSpec spec = {.kind = static_cast<MomentKind>(h->kind),
                           .layout = static_cast<MomentLayout>(h->layout),
                           .block_size = h->block_size,
                           .cols = h->cols,
                           .paired_cols = paired->paired_cols,
                           .sample_rows = h->sample_capacity,
                           .sample_seed = h->sample_seed};
  if (absl::Status status = spec.Validate(); !status.ok()) return Lost(status.message());
  const int64_t expected =
      BytesOf(h->version, spec, h->pending_rows, h->pending_is_f64 != 0, h->sample_rows);
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
  moment->weight_sum_ = paired->weight_sum;
  Cursor cursor(bytes.data() + HeaderBytes(h->version));
  std::vector<double>& sum = moment->sum_;
  ReadSum(spec, cursor, sum);
  std::vector<double> pending(h->pending_rows * spec.TokenValues());
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
