// A page token is either refused or says the same when it is written again; one list's token is
// none of another's.
#include <string>

#include "server/store/page_token.h"
#include "tests/fuzz/byte_feed.h"
#include "tests/fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using quantd::server::MakePageToken;
  using quantd::server::PageEnd;
  using quantd::server::ParsePageToken;
  quantd::fuzz::ByteFeed feed(data, size);
  const bool made = (feed.Byte() & 1) != 0;
  if (!made) {
    const std::string token = feed.Rest();
    const auto end = ParsePageToken("jobs/acme", token);
    if (!end.ok()) {
      quantd::fuzz::CheckRefusal(end.status(), absl::StatusCode::kInvalidArgument);
      return 0;
    }
    const auto again = ParsePageToken("jobs/acme", MakePageToken("jobs/acme", *end));
    FUZZ_CHECK(again.ok() && again->time_us == end->time_us && again->id == end->id);
    return 0;
  }
  const std::string scope = feed.Text();
  const auto time = feed.Take<int64_t>();
  const PageEnd end = {.time_us = time, .id = feed.Rest()};
  std::string token = MakePageToken(scope, end);
  const auto parsed = ParsePageToken(scope, token);
  FUZZ_CHECK(parsed.ok() && parsed->time_us == end.time_us && parsed->id == end.id);
  FUZZ_CHECK(!ParsePageToken(scope + "/x", token).ok());
  token[static_cast<uint64_t>(time) % token.size()] ^= 1;
  const auto changed = ParsePageToken(scope, token);
  // Bits that base64 leaves unused may change.
  FUZZ_CHECK(!changed.ok() || changed->id == end.id);
  return 0;
}
