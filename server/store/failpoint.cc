#include "server/store/failpoint.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace quantd::server {

#ifndef QUANTD_FAILPOINTS

std::vector<std::string> FailpointNames() { return {}; }
bool FailpointsArmed() { return false; }
absl::Status ArmFailpoints(absl::string_view) {
  return absl::UnimplementedError("this program was built without QUANTD_FAILPOINTS");
}

#else

namespace {

// Operations have two, NAME and NAME.done. tests/reliability compares this with the sources.
constexpr absl::string_view kOperations[] = {
    "blob.append",
    "blob.append.undo",
    "blob.commit.directory",
    "blob.commit.fsync",
    "blob.commit.rename",
    "blob.create",
    "blob.delete",
    "blob.mkdir",
    "blob.mkdir.directory",
    "blob.resume.rename",
    "blob.resume.truncate",
    "blob.sync",
    "blob.sync.directory",
    "commit.delete_job",
    "commit.delete_statistic",
    "commit.insert_job",
    "commit.insert_statistic",
    "commit.schema",
    "commit.seal_statistic",
    "commit.stream",
    "commit.update_job",
    "commit.upload",
    "sqlite.database.sync",
    "sqlite.database.write",
    "sqlite.delete",
    "sqlite.wal.sync",
    "sqlite.wal.write",
};
constexpr absl::string_view kSteps[] = {
    "blob.read",
    "ingest.delete.blobs",
    "ingest.import.commit",
    "ingest.seal.commit",
    "ingest.seal.drop",
    "ingest.stream.acknowledge",
    "ingest.stream.commit",
    "ingest.stream.snapshot",
    "ingest.upload.commit",
    "ingest.upload.complete",
    "ingest.upload.finish",
    "ingest.upload.stage",
};

enum class Action { kCrash, kEio, kEnospc, kDelay, kTrace };

struct Rule {
  Action action = Action::kCrash;
  absl::Duration delay;
  int64_t first = 1;
  int64_t last = std::numeric_limits<int64_t>::max();
  double probability = 1.0;
  uint64_t seed = 0;
};

// A well-mixed number of a seed and a count (SplitMix64's finalizer).
double Draw(uint64_t seed, int64_t hit) {
  uint64_t z = seed + static_cast<uint64_t>(hit) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

bool Applies(const Rule& rule, int64_t hit) {
  return hit >= rule.first && hit <= rule.last &&
         (rule.probability >= 1.0 || Draw(rule.seed, hit) < rule.probability);
}

bool ParseAction(absl::string_view text, Rule& rule) {
  static const auto* const actions =
      new std::map<absl::string_view, Action>{{"crash", Action::kCrash},
                                              {"eio", Action::kEio},
                                              {"enospc", Action::kEnospc},
                                              {"trace", Action::kTrace}};
  if (const auto found = actions->find(text); found != actions->end()) {
    rule.action = found->second;
    return true;
  }
  int64_t milliseconds = 0;
  if (!absl::ConsumePrefix(&text, "delay:") || !absl::SimpleAtoi(text, &milliseconds)) return false;
  rule.action = Action::kDelay;
  rule.delay = absl::Milliseconds(milliseconds);
  return milliseconds >= 0;
}

bool ParseWhen(absl::string_view text, Rule& rule) {
  const std::pair<absl::string_view, absl::string_view> drawn = absl::StrSplit(text, '%');
  if (absl::SimpleAtod(drawn.first, &rule.probability) &&
      absl::SimpleAtoi(drawn.second, &rule.seed)) {
    return rule.probability >= 0.0 && rule.probability <= 1.0;
  }
  rule.probability = 1.0;
  if (absl::ConsumeSuffix(&text, "+")) return absl::SimpleAtoi(text, &rule.first);
  const std::pair<absl::string_view, absl::string_view> range = absl::StrSplit(text, '-');
  if (!absl::SimpleAtoi(range.first, &rule.first)) return false;
  rule.last = rule.first;
  return range.second.empty() || absl::SimpleAtoi(range.second, &rule.last);
}

// What is armed and how often each failpoint was hit since.
class Armed {
 public:
  absl::Status Replace(absl::string_view text) {
    const std::vector<std::string> names = FailpointNames();
    std::multimap<std::string, Rule> rules;
    for (absl::string_view part : absl::StrSplit(text, ';')) {
      part = absl::StripAsciiWhitespace(part);
      if (part.empty()) continue;
      const std::pair<std::string, absl::string_view> rule =
          absl::StrSplit(part, absl::MaxSplits('=', 1));
      const std::pair<absl::string_view, absl::string_view> what = absl::StrSplit(rule.second, '@');
      Rule parsed;
      if (!ParseAction(what.first, parsed) ||
          (!what.second.empty() && !ParseWhen(what.second, parsed))) {
        return absl::InvalidArgumentError(
            absl::StrCat("failpoints: expected NAME=ACTION[@WHEN], got '", part, "'"));
      }
      if (rule.first != "*" && !std::binary_search(names.begin(), names.end(), rule.first)) {
        return absl::InvalidArgumentError(
            absl::StrCat("failpoints: there is no '", rule.first, "'"));
      }
      rules.emplace(rule.first, parsed);
    }
    std::lock_guard lock(mutex_);
    rules_ = std::move(rules);
    hits_.clear();
    armed_ = !rules_.empty();
    return absl::OkStatus();
  }

  bool armed() const { return armed_; }

  // The rule that applies to this hit of `name`.
  std::optional<Rule> Hit(const std::string& name, int64_t& hit) {
    std::lock_guard lock(mutex_);
    hit = ++hits_[name];
    for (const std::string& key : {name, std::string("*")}) {
      const auto [begin, end] = rules_.equal_range(key);
      for (auto rule = begin; rule != end; ++rule) {
        if (Applies(rule->second, hit)) return rule->second;
      }
    }
    return std::nullopt;
  }

 private:
  std::atomic<bool> armed_{false};
  std::mutex mutex_;
  std::multimap<std::string, Rule> rules_;
  std::map<std::string, int64_t> hits_;
};

Armed& TheArmed() {
  static auto* const armed = new Armed;
  return *armed;
}

// In one piece and without buffers: the next thing may be the end.
void Say(const std::string& line) {
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return;
}

}  // namespace

std::vector<std::string> FailpointNames() {
  std::vector<std::string> names;
  for (const absl::string_view name : kSteps) names.emplace_back(name);
  for (const absl::string_view name : kOperations) {
    names.emplace_back(name);
    names.push_back(absl::StrCat(name, ".done"));
  }
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status ArmFailpoints(absl::string_view rules) { return TheArmed().Replace(rules); }

bool FailpointsArmed() { return TheArmed().armed(); }

absl::Status HitFailpoint(absl::string_view name) {
  if (!TheArmed().armed()) return absl::OkStatus();
  int64_t hit = 0;
  const std::optional<Rule> rule = TheArmed().Hit(std::string(name), hit);
  if (!rule.has_value()) return absl::OkStatus();
  switch (rule->action) {
    case Action::kCrash:
      Say(absl::StrCat("failpoint ", name, " hit ", hit, ": crash\n"));
      ::kill(::getpid(), SIGKILL);
      for (;;) ::pause();
    case Action::kTrace:
      Say(absl::StrCat("failpoint ", name, " hit ", hit, "\n"));
      return absl::OkStatus();
    case Action::kDelay:
      absl::SleepFor(rule->delay);
      return absl::OkStatus();
    case Action::kEio:
      Say(absl::StrCat("failpoint ", name, " hit ", hit, ": eio\n"));
      return absl::ErrnoToStatus(EIO, absl::StrCat("failpoint ", name));
    case Action::kEnospc:
      Say(absl::StrCat("failpoint ", name, " hit ", hit, ": enospc\n"));
      return absl::Status(absl::StatusCode::kResourceExhausted,
                          absl::ErrnoToStatus(ENOSPC, absl::StrCat("failpoint ", name)).message());
  }
  return absl::OkStatus();
}

#endif  // QUANTD_FAILPOINTS

}  // namespace quantd::server
