// Any text is either refused, with the place of the mistake, or a configuration that can be
// checked.
#include "server/config/config.h"
#include "tests/fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = quantd::server::ParseConfig(text, "text");
  if (!config.ok()) {
    quantd::fuzz::CheckRefusal(config.status(), absl::StatusCode::kInvalidArgument);
    return 0;
  }
  const absl::Status valid = quantd::server::Validate(*config);
  if (!valid.ok()) quantd::fuzz::CheckRefusal(valid, absl::StatusCode::kInvalidArgument);
  return 0;
}
