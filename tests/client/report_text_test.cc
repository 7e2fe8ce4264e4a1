#include "client/cli/report_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quantd::cli {
namespace {

using testing::HasSubstr;

constexpr char kReport[] = R"({
  "rows": 64, "cols": 128, "outcome": "EXACT", "tokens": 123456, "device": "cpu",
  "relative_output_error_weight_only": 0.0123456,
  "relative_output_error_weight_and_activation": null,
  "sqnr_db_weight_only": 19.085,
  "baseline_identity_rtn_relative_output_error_weight_only": 0.05,
  "baseline_identity_rtn_gain_weight_only": 4.05,
  "waterfilling_limit_bits": 3.9, "waterfilling_gap_bits": 0.35,
  "bits_per_weight": 4.25, "seconds": {"transform": 0.25, "quantize": 0.5, "total": 0.8}
})";

TEST(ReportTextTest, ShowsFiguresAndDashesForWhatWasNotMeasured) {
  const std::string text = FormatReport("q_proj", kReport);
  EXPECT_THAT(text, HasSubstr("q_proj: 64 x 128, EXACT"));
  EXPECT_THAT(text, HasSubstr("0.01235"));
  EXPECT_THAT(text, HasSubstr("19.09 dB"));
  EXPECT_THAT(text, HasSubstr("4.05x"));
  EXPECT_THAT(text, HasSubstr("tokens 123456, computed in 0.80 s on cpu"));
  EXPECT_THAT(text,
              HasSubstr("limit at this error 3.9 bits, gap 0.35; GPTQ's predicted extra gap -"));
  EXPECT_THAT(text, testing::ContainsRegex("hadamard, RTN +- +- +- +-"));
}

TEST(ReportTextTest, WithoutALimitThereIsNoLineOfIt) {
  EXPECT_THAT(FormatReport("l", R"({"waterfilling_limit_bits": null})"),
              testing::Not(HasSubstr("limit")));
}

TEST(ReportTextTest, SurvivesWhatIsNoReport) {
  EXPECT_EQ(FormatReport("l", "no json"), "l: no report\n");
  EXPECT_EQ(OneLine("no json"), "no json");
}

TEST(ReportTextTest, OneLineHasNoBreaks) {
  EXPECT_EQ(OneLine("{\n  \"a\": [1,\n 2]\n}\n"), "{\"a\":[1,2]}");
}

}  // namespace
}  // namespace quantd::cli
