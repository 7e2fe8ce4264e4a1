// Any bytes are either refused or a moment that is written as the same bytes again.
#include <xxhash.h>

#include <cstring>
#include <string>

#include "compute/second_moment/second_moment.h"
#include "tests/fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using quantd::compute::SecondMoment;
  if (size == 0) return 0;
  // The first byte says whether the bytes end in a checksum; else they get theirs, so that changed
  // bytes come past it.
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if ((data[0] & 1) != 0) {
    const uint64_t checksum = XXH3_64bits(bytes.data(), bytes.size());
    bytes.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
  }
  const auto moment = SecondMoment::Parse(bytes);
  if (!moment.ok()) {
    quantd::fuzz::CheckRefusal(moment.status(), absl::StatusCode::kDataLoss,
                               absl::StatusCode::kResourceExhausted);
    return 0;
  }
  FUZZ_CHECK(moment->spec().Validate().ok());
  FUZZ_CHECK(moment->tokens() >= 0);
  FUZZ_CHECK(static_cast<int64_t>(moment->sum().size()) == moment->spec().SumElements());
  const std::string again = moment->Serialize();
  FUZZ_CHECK(static_cast<int64_t>(again.size()) == moment->SerializedBytes());
  const auto reread = SecondMoment::Parse(again);
  FUZZ_CHECK(reread.ok());
  FUZZ_CHECK(reread->Serialize() == again);
  return 0;
}
