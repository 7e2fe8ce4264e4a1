// Any text is either refused as DATA_LOSS or a report and figures of finite numbers.
#include <cmath>
#include <string>

#include "server/service/messages.h"
#include "tests/fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantd::server;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto report = ErrorReportFromJson(text);
  if (report.ok()) {
    FUZZ_CHECK(std::isfinite(report->bits_per_weight()));
  } else {
    quantd::fuzz::CheckRefusal(report.status(), absl::StatusCode::kDataLoss);
  }
  const auto figures = MeasuredFiguresFromJson(text);
  if (!figures.ok()) {
    quantd::fuzz::CheckRefusal(figures.status(), absl::StatusCode::kDataLoss);
  }
  return 0;
}
