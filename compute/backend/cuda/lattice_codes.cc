#include "compute/backend/cuda/lattice_codes.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/lattice_codes_kernels.h"
#include "compute/backend/cuda/rans_kernels.h"
#include "compute/coding/block_checksum.h"
#include "compute/coding/stream_layout.h"
#include "compute/coding/stream_start.h"
#include "compute/coding/token_step.h"

namespace quantd::compute {
namespace {

static_assert(kRansClasses == kMaxClasses);

// Matrices with fewer values are encoded on the host.
constexpr int64_t kLeastDeviceValues = int64_t{1} << 14;

absl::StatusOr<DeviceBuffer<int32_t>> RowMajor(CudaStream& stream, const DeviceTensor& codes,
                                               int64_t first, int64_t rows) {
  const int64_t cols = codes.dim(0);
  auto values = DeviceBuffer<int32_t>::Allocate(stream, rows * cols);
  if (!values.ok()) return values.status();
  absl::Status status =
      ToStatus(LaunchRowMajorCodes(stream.get(), rows, cols, DeviceData<int32_t>(codes) + first,
                                   codes.dim(1), values->data()),
               "transposing codes");
  if (!status.ok()) return status;
  return values;
}

// XXH3-64 of `count` values on the device.
absl::StatusOr<uint64_t> Checksum(CudaStream& stream, const int32_t* values, int64_t count) {
  const auto bytes = count * static_cast<int64_t>(sizeof(int32_t));
  const int64_t blocks = ChecksumBlocks(bytes);
  ChecksumSecret secret = {};
  std::copy(kChecksumSecret.begin(), kChecksumSecret.end(), secret.words);
  const auto sums = DeviceBuffer<uint64_t>::Allocate(stream, blocks * kChecksumLanes);
  if (!sums.ok()) return sums.status();
  absl::Status status = ToStatus(
      LaunchChecksumBlocks(stream.get(), secret, blocks, values, sums->data()), "checksum");
  if (!status.ok()) return status;
  const auto host_sums = CopyToHost(stream, sums->data(), sums->size());
  if (!host_sums.ok()) return host_sums.status();
  const int64_t tail = blocks * kChecksumBlock - kChecksumStripe;
  const auto end =
      CopyToHost(stream, reinterpret_cast<const std::byte*>(values) + tail, bytes - tail);
  if (!end.ok()) return end.status();
  return FinishChecksum(bytes, *host_sums, *end);
}

// The tables of a model on the device.
class DeviceModel {
 public:
  static absl::StatusOr<DeviceModel> Upload(CudaStream& stream, const CodingModel& model) {
    DeviceModel on_device;
    on_device.view_.precision = model.precision;
    on_device.view_.cols = static_cast<int64_t>(model.class_of_column.size());
    std::vector<RansStep> steps;
    for (size_t k = 0; k < model.tables.size(); ++k) {
      on_device.view_.first_step[k] = static_cast<int>(steps.size());
      on_device.view_.split[k] = model.tables[k].alphabet.split();
      for (const TokenStep& step : StepsOf(model.tables[k], model.precision)) {
        steps.push_back({.reciprocal = step.reciprocal(),
                         .last = static_cast<uint32_t>(step.limit() - 1),
                         .offset = step.offset()});
      }
    }
    auto classes = compute::Upload<uint8_t>(stream, model.class_of_column);
    if (!classes.ok()) return classes.status();
    auto tables = compute::Upload<RansStep>(stream, steps);
    if (!tables.ok()) return tables.status();
    on_device.classes_ = *std::move(classes);
    on_device.steps_ = *std::move(tables);
    on_device.view_.class_of_column = on_device.classes_.data();
    on_device.view_.steps = on_device.steps_.data();
    return on_device;
  }
  const RansModel& view() const { return view_; }

 private:
  RansModel view_;
  DeviceBuffer<uint8_t> classes_;
  DeviceBuffer<RansStep> steps_;
};

// Appends the words of all segments of `count` values to `coded`.
class SegmentWriter {
 public:
  SegmentWriter(CudaStream& stream, int64_t count, int64_t segment_values, CodedIntegers& coded)
      : stream_(stream),
        count_(count),
        segment_values_(segment_values),
        segments_((count + segment_values - 1) / segment_values),
        coded_(coded) {}

  absl::Status Write(const RansModel& model, const int32_t* values) {
    auto words =
        DeviceBuffer<uint16_t>::Allocate(stream_, segments_ * RansCapacity(segment_values_));
    if (!words.ok()) return words.status();
    const auto sizes = DeviceBuffer<uint32_t>::Allocate(stream_, segments_);
    if (!sizes.ok()) return sizes.status();
    absl::Status status = ToStatus(LaunchRansEncode(stream_.get(), model, values, count_,
                                                    segment_values_, words->data(), sizes->data()),
                                   "encoding codes");
    if (!status.ok()) return status;
    const auto host_sizes = CopyToHost(stream_, sizes->data(), segments_);
    if (!host_sizes.ok()) return host_sizes.status();
    return Append(*host_sizes, words->data());
  }

 private:
  absl::Status Append(const std::vector<uint32_t>& sizes, const uint16_t* words) {
    std::vector<uint32_t> offsets = {0};
    uint64_t end = 0;
    for (const uint32_t size : sizes) {
      end += size;
      if (end > std::numeric_limits<uint32_t>::max()) return TooManyWords(count_);
      offsets.push_back(static_cast<uint32_t>(end));
      coded_.segment_offsets.push_back(offsets.back());
      coded_.segment_offsets.push_back(0);  // escapes
    }
    const auto device_offsets = compute::Upload<uint32_t>(stream_, offsets);
    if (!device_offsets.ok()) return device_offsets.status();
    const auto gathered = DeviceBuffer<uint16_t>::Allocate(stream_, static_cast<int64_t>(end));
    if (!gathered.ok()) return gathered.status();
    absl::Status status =
        ToStatus(LaunchRansGather(stream_.get(), segments_, segment_values_, words,
                                  device_offsets->data(), gathered->data()),
                 "gathering words");
    if (!status.ok()) return status;
    const size_t begin = coded_.stream.size();
    coded_.stream.resize(begin + 2 * end);
    return CopyBytesToHost(stream_, gathered->data(), 2 * static_cast<int64_t>(end),
                           coded_.stream.data() + begin);
  }

  CudaStream& stream_;
  const int64_t count_;
  const int64_t segment_values_;
  const int64_t segments_;
  CodedIntegers& coded_;
};

// The tables of a stream on the device.
class DeviceTables {
 public:
  static absl::StatusOr<DeviceTables> Upload(CudaStream& stream, const StreamLayout& layout) {
    const DecodingTables& from = layout.tables;
    std::vector<RansToken> tokens;
    for (size_t t = 0; t < from.tokens.size(); ++t) {
      tokens.push_back(
          {.start = from.tokens[t].start,
           .frequency = from.tokens[t].frequency,
           .base = from.meanings[t].base,
           .raw_bits = from.meanings[t].is_escape ? kRansEscape : from.meanings[t].raw_bits});
    }
    auto classes = compute::Upload<uint8_t>(stream, from.class_of_column);
    if (!classes.ok()) return classes.status();
    auto slots = compute::Upload<uint16_t>(stream, from.token_of_slot);
    if (!slots.ok()) return slots.status();
    auto all = compute::Upload<RansToken>(stream, tokens);
    if (!all.ok()) return all.status();
    DeviceTables tables;
    tables.classes_ = *std::move(classes);
    tables.slots_ = *std::move(slots);
    tables.tokens_ = *std::move(all);
    tables.view_ = {.precision = from.precision,
                    .cols = layout.header.cols,
                    .class_of_column = tables.classes_.data(),
                    .token_of_slot = tables.slots_.data(),
                    .tokens = tables.tokens_.data()};
    return tables;
  }
  const RansTables& view() const { return view_; }

 private:
  RansTables view_;
  DeviceBuffer<uint8_t> classes_;
  DeviceBuffer<uint16_t> slots_;
  DeviceBuffer<RansToken> tokens_;
};

// All segments of a stream whose layout is right.
absl::Status DecodeSegments(CudaStream& stream, const CodedIntegersView& coded,
                            const StreamLayout& layout, int32_t* values) {
  const absl::StatusOr<DeviceTables> tables = DeviceTables::Upload(stream, layout);
  if (!tables.ok()) return tables.status();
  const absl::Span<const std::byte> bytes = coded.stream.subspan(layout.words_begin());
  const auto words = Upload<std::byte>(stream, bytes);
  if (!words.ok()) return words.status();
  const auto offsets = Upload<uint32_t>(stream, coded.segment_offsets);
  if (!offsets.ok()) return offsets.status();
  const auto segments = static_cast<int64_t>(coded.segment_offsets.size()) / 2 - 1;
  const auto faults = DeviceBuffer<int>::Allocate(stream, segments);
  if (!faults.ok()) return faults.status();
  absl::Status status =
      ToStatus(LaunchRansDecode(stream.get(), tables->view(),
                                reinterpret_cast<const uint16_t*>(words->data()), offsets->data(),
                                static_cast<int64_t>(layout.header.count),
                                layout.header.segment_values, values, faults->data()),
               "decoding codes");
  if (!status.ok()) return status;
  const auto host_faults = CopyToHost(stream, faults->data(), segments);
  if (!host_faults.ok()) return host_faults.status();
  for (int64_t s = 0; s < segments; ++s) {
    const auto fault = static_cast<SegmentFault>((*host_faults)[s]);
    if (fault != SegmentFault::kNone) return StatusOf(fault, s);
  }
  return absl::OkStatus();
}

// On the host.
absl::Status DecodeThere(CudaStream& stream, const CodedIntegersView& coded, int64_t rows,
                         int64_t cols, int32_t* to) {
  const absl::StatusOr<std::vector<int32_t>> values = DecodeIntegers(coded, rows, cols);
  if (!values.ok()) return values.status();
  return CopyToDevice<int32_t>(stream, *values, to);
}

// `count` of them.
absl::StatusOr<std::vector<int32_t>> ListLargeCodes(CudaStream& stream, int64_t rows, int64_t cols,
                                                    const int32_t* values, int64_t stride,
                                                    int64_t count) {
  const auto large = DeviceBuffer<int32_t>::Allocate(stream, count);
  if (!large.ok()) return large.status();
  const auto listed = DeviceBuffer<uint32_t>::Allocate(stream, 1);
  if (!listed.ok()) return listed.status();
  absl::Status status = ToStatus(cudaMemsetAsync(listed->data(), 0, sizeof(uint32_t), stream.get()),
                                 "clearing a count");
  if (status.ok()) {
    status = ToStatus(LaunchListLargeCodes(stream.get(), rows, cols, values, stride, count,
                                           large->data(), listed->data()),
                      "listing large codes");
  }
  if (!status.ok()) return status;
  return CopyToHost(stream, large->data(), count);
}

}  // namespace

absl::StatusOr<CodeCounts> CudaCountCodes(CudaStream& stream, const DeviceTensor& codes,
                                          int64_t first, int64_t rows) {
  const int64_t cols = codes.dim(0);
  const int64_t stride = codes.dim(1);
  const int32_t* const values = DeviceData<int32_t>(codes) + first;
  const auto squares = DeviceBuffer<double>::Allocate(stream, cols);
  if (!squares.ok()) return squares.status();
  absl::Status status = ToStatus(
      LaunchCodeSquares(stream.get(), rows, cols, values, stride, squares->data()), "code spreads");
  if (!status.ok()) return status;
  const auto host_squares = CopyToHost(stream, squares->data(), cols);
  if (!host_squares.ok()) return host_squares.status();
  CodeCounts counts = {.values = rows * cols,
                       .bin_of_column = BinColumns(*host_squares, rows),
                       .of_bin = std::vector<TokenCounts>(kSpreadBins)};
  const auto bins = Upload<uint8_t>(stream, counts.bin_of_column);
  if (!bins.ok()) return bins.status();
  const auto tokens = DeviceBuffer<uint32_t>::Allocate(stream, kSpreadBins * kFinestTokens);
  if (!tokens.ok()) return tokens.status();
  status =
      ToStatus(cudaMemsetAsync(tokens->data(), 0, tokens->size() * sizeof(uint32_t), stream.get()),
               "clearing counts");
  if (status.ok()) {
    status = ToStatus(
        LaunchCountTokens(stream.get(), rows, cols, values, stride, bins->data(), tokens->data()),
        "counting codes");
  }
  if (!status.ok()) return status;
  const auto host_tokens = CopyToHost(stream, tokens->data(), tokens->size());
  if (!host_tokens.ok()) return host_tokens.status();
  for (const uint8_t bin : counts.bin_of_column) {
    if (!counts.of_bin[bin].empty()) continue;
    const auto begin = host_tokens->begin() + int64_t{bin} * kFinestTokens;
    counts.of_bin[bin].assign(begin, begin + kFinestTokens);
  }
  const int64_t large = CountLargeValues(counts);
  if (large == 0 || large > MostLargeValues(counts.values)) return counts;
  absl::StatusOr<std::vector<int32_t>> listed =
      ListLargeCodes(stream, rows, cols, values, stride, large);
  if (!listed.ok()) return listed.status();
  counts.large = *std::move(listed);
  return counts;
}

absl::StatusOr<CodedIntegers> CudaEncodeCodes(CudaStream& stream, const DeviceTensor& codes,
                                              int64_t first, int64_t rows,
                                              const CodingModel& model) {
  const int64_t count = rows * codes.dim(0);
  const auto values = RowMajor(stream, codes, first, rows);
  if (!values.ok()) return values.status();
  // Escapes, which next to no layer has, are a list that only the host makes.
  if (model.has_escapes || count < kLeastDeviceValues) {
    const auto host = CopyToHost(stream, values->data(), count);
    if (!host.ok()) return host.status();
    return EncodeIntegers(*host, model);
  }
  const absl::StatusOr<uint64_t> checksum = Checksum(stream, values->data(), count);
  if (!checksum.ok()) return checksum.status();
  const absl::StatusOr<DeviceModel> on_device = DeviceModel::Upload(stream, model);
  if (!on_device.ok()) return on_device.status();
  const int64_t segment_values = SegmentValues(model, count);
  CodedIntegers coded = BeginStream(model, count, segment_values, *checksum);
  absl::Status status =
      SegmentWriter(stream, count, segment_values, coded).Write(on_device->view(), values->data());
  if (!status.ok()) return status;
  return coded;
}

absl::StatusOr<DeviceTensor> CudaDecodeCodes(CudaStream& stream, const CodedIntegersView& coded,
                                             int64_t rows, int64_t cols) {
  const absl::StatusOr<StreamLayout> layout = ReadLayout(coded, rows, cols);
  if (!layout.ok()) return layout.status();
  const auto count = static_cast<int64_t>(layout->header.count);
  auto codes = NewDeviceTensor<int32_t>(stream, DType::kI32, {rows, cols});
  if (!codes.ok()) return codes.status();
  absl::Status status;
  if (count < kLeastDeviceValues || !coded.escapes.empty()) {
    status = DecodeThere(stream, coded, rows, cols, codes->data);
  } else {
    status = DecodeSegments(stream, coded, *layout, codes->data);
    if (status.ok()) {
      const absl::StatusOr<uint64_t> checksum = Checksum(stream, codes->data, count);
      status = checksum.ok() ? CheckSum(layout->header, *checksum) : checksum.status();
    }
  }
  if (!status.ok()) return status;
  return std::move(codes->tensor);
}

}  // namespace quantd::compute
