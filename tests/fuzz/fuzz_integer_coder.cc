// Any entropy-coded stream is either refused or decodes to integers that survive another encoding.
#include <vector>

#include "compute/coding/integer_coder.h"
#include "tests/fuzz/byte_feed.h"
#include "tests/fuzz/check.h"

namespace {

template <typename T>
std::vector<T> TakeValues(quantd::fuzz::ByteFeed& feed) {
  const std::string bytes = feed.Text();
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantd::compute;
  quantd::fuzz::ByteFeed feed(data, size);
  const auto rows = feed.Take<uint16_t>();
  const auto cols = feed.Take<uint16_t>();
  if (int64_t{rows} * cols > 1 << 12) return 0;
  CodedIntegers coded;
  coded.segment_offsets = TakeValues<uint32_t>(feed);
  coded.frequencies = TakeValues<uint16_t>(feed);
  coded.escapes = TakeValues<int32_t>(feed);
  coded.stream = TakeValues<std::byte>(feed);
  const auto values = DecodeIntegers(coded, rows, cols);
  if (!values.ok()) {
    quantd::fuzz::CheckRefusal(values.status(), absl::StatusCode::kDataLoss,
                               absl::StatusCode::kInvalidArgument);
    return 0;
  }
  FUZZ_CHECK(values->size() == size_t{rows} * cols);
  if (values->empty()) return 0;
  const auto encoded = EncodeIntegers(*values, cols);
  FUZZ_CHECK(encoded.ok());
  const auto again = DecodeIntegers(*encoded, rows, cols);
  FUZZ_CHECK(again.ok() && *again == *values);
  return 0;
}
