#include "client/cli/terminal.h"

#include <gtest/gtest.h>

namespace quantd::cli {
namespace {

TEST(TerminalTest, TablesAreAligned) {
  EXPECT_EQ(
      FormatTable({{"NAME", "SIZE", "NOTE"}, {"a", "1000", "x"}, {"long name", "7", ""}}, {1}),
      "NAME       SIZE  NOTE\n"
      "a          1000  x\n"
      "long name     7\n");
}

TEST(TerminalTest, ControlCharactersDoNotReachTheTerminal) {
  EXPECT_EQ(Printable("plain \xc3\xa9\nline"), "plain \xc3\xa9\nline");
  EXPECT_EQ(Printable(absl::string_view("a\x1b[2J\x07\x7f\0", 8)), "a\\x1b[2J\\x07\\x7f\\x00");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "2J"),
            "\\x9b2J");
  EXPECT_LT(Printable(std::string(100'000, 'x')).size(), 5000u);
}

TEST(TerminalTest, BytesAndSecondsAreReadable) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(int64_t{3} << 30), "3.0 GiB");
  EXPECT_EQ(HumanSeconds(0.314), "0.31 s");
  EXPECT_EQ(HumanSeconds(42.4), "42 s");
  EXPECT_EQ(HumanSeconds(125), "2 min 5 s");
  EXPECT_EQ(HumanSeconds(7260), "2 h 1 min");
}

TEST(TerminalTest, LastSegmentOfResourceNames) {
  EXPECT_EQ(LastSegment("tenants/a/jobs/j1"), "j1");
  EXPECT_EQ(LastSegment("j1"), "j1");
}

}  // namespace
}  // namespace quantd::cli
