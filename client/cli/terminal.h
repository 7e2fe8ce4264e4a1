#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace quantd::cli {

// How results and progress are shown: results on stdout, everything else on stderr.
struct Output {
  bool quiet = false;  // neither progress nor summaries
  bool json = false;   // results as JSON, one object a line
};

// Text of any origin (names in files, other people's jobs, a server's messages) without control
// characters, which are shown as \x1b, and not longer than a few screens. Line breaks stay.
std::string Printable(absl::string_view text);

// A message for the person who watches; nothing with `quiet`.
void Note(const Output& output, absl::string_view message);

// One line at the bottom of the terminal that shows how far something is, redrawn in place. Draws
// nothing where stderr is no terminal or with `quiet`. Not thread-safe.
class ProgressBar {
 public:
  explicit ProgressBar(const Output& output);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  bool visible() const { return visible_; }
  // `fraction` in 0..1, or negative where it is not known.
  void Show(absl::string_view label, double fraction, absl::string_view detail);
  // Bytes of a transfer, with the rate since the label first appeared.
  void ShowBytes(absl::string_view label, int64_t done, int64_t total);
  // A line that stays, above the bar.
  void PrintAbove(absl::string_view line);
  void Clear();

 private:
  void Draw(bool force);

  const bool visible_;
  bool drawn_ = false;
  std::string label_;
  std::string text_;
  absl::Time label_since_;
  absl::Time last_drawn_ = absl::InfinitePast();
};

// Columns aligned, two spaces apart; the first row is the head. Columns listed in `right` are
// aligned to the right.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows,
                        const std::vector<size_t>& right = {});

std::string HumanBytes(int64_t bytes);            // "1.5 MiB"
std::string HumanSeconds(double seconds);         // "0.31 s", "2 min 5 s"
std::string LocalTime(absl::Time time);           // "2026-01-31 12:00:00"
std::string LastSegment(absl::string_view name);  // of a resource name

}  // namespace quantd::cli
