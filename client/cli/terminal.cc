#include "client/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace quantd::cli {
namespace {

size_t TerminalColumns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

std::string Bar(double fraction) {
  constexpr int kCells = 24;
  const int full = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * kCells);
  return absl::StrCat("[", std::string(full, '#'), std::string(kCells - full, '.'), "]");
}

void WriteToStderr(absl::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

std::string Printable(absl::string_view text) {
  constexpr size_t kLongest = 4000;
  std::string printable;
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n') || byte == 0x7f) {
      absl::StrAppendFormat(&printable, "\\x%02x", byte);
    } else {
      printable.push_back(c);
    }
  }
  // U+0080..U+009F, which terminals obey as well.
  for (size_t at = 0; (at = printable.find('\xc2', at)) != std::string::npos; ++at) {
    if (at + 1 >= printable.size()) break;
    const auto next = static_cast<unsigned char>(printable[at + 1]);
    if (next >= 0x80 && next < 0xa0) printable.replace(at, 2, absl::StrFormat("\\x%02x", next));
  }
  if (text.size() > kLongest) printable += "...";
  return printable;
}

void Note(const Output& output, absl::string_view message) {
  if (!output.quiet) WriteToStderr(absl::StrCat(Printable(message), "\n"));
}

ProgressBar::ProgressBar(const Output& output)
    : visible_(!output.quiet && isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() { Clear(); }

void ProgressBar::Show(absl::string_view label, double fraction, absl::string_view detail) {
  if (!visible_) return;
  const bool changed = label_ != label;
  if (changed) {
    label_ = std::string(label);
    label_since_ = absl::Now();
  }
  text_ = fraction < 0 ? absl::StrFormat("%-22s %s", label, detail)
                       : absl::StrFormat("%-22s %s %3.0f%%  %s", label, Bar(fraction),
                                         100 * fraction, detail);
  Draw(changed || fraction >= 1);
}

void ProgressBar::ShowBytes(absl::string_view label, int64_t done, int64_t total) {
  if (!visible_) return;
  const double seconds = label_ == label ? absl::ToDoubleSeconds(absl::Now() - label_since_) : 0.0;
  std::string rate;
  if (seconds > 0.05) {
    rate = absl::StrCat("  ", HumanBytes(static_cast<int64_t>(done / seconds)), "/s");
  }
  Show(label, total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1.0,
       absl::StrCat(HumanBytes(done), " of ", HumanBytes(total), rate));
}

void ProgressBar::PrintAbove(absl::string_view line) {
  Clear();
  WriteToStderr(absl::StrCat(Printable(line), "\n"));
}

void ProgressBar::Clear() {
  if (!drawn_) return;
  WriteToStderr("\r\x1b[K");
  drawn_ = false;
}

void ProgressBar::Draw(bool force) {
  const absl::Time now = absl::Now();
  if (!force && now - last_drawn_ < absl::Milliseconds(50)) return;
  last_drawn_ = now;
  drawn_ = true;
  WriteToStderr(absl::StrCat("\r\x1b[K", Printable(text_).substr(0, TerminalColumns() - 1)));
}

std::string FormatTable(const std::vector<std::vector<std::string>>& rows,
                        const std::vector<size_t>& right) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string table;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - row[i].size(), ' ');
      const bool to_the_right = std::find(right.begin(), right.end(), i) != right.end();
      absl::StrAppend(&line, i == 0 ? "" : "  ",
                      to_the_right ? padding + row[i] : row[i] + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&table, Printable(line), "\n");
  }
  return table;
}

std::string HumanBytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string HumanSeconds(double seconds) {
  if (seconds < 10) return absl::StrFormat("%.2f s", seconds);
  if (seconds < 60) return absl::StrFormat("%.0f s", seconds);
  const int64_t whole = static_cast<int64_t>(seconds);
  if (whole < 3600) return absl::StrCat(whole / 60, " min ", whole % 60, " s");
  return absl::StrCat(whole / 3600, " h ", whole % 3600 / 60, " min");
}

std::string LocalTime(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", time, absl::LocalTimeZone());
}

std::string LastSegment(absl::string_view name) {
  return std::string(name.substr(name.rfind('/') + 1));
}

}  // namespace quantd::cli
