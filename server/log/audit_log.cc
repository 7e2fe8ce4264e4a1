#include "server/log/audit_log.h"

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "server/log/log.h"
#include "spdlog/sinks/basic_file_sink.h"
#include "spdlog/spdlog.h"

namespace quantd::server {
namespace {

constexpr size_t kMaxValueBytes = 256;

std::string Bounded(const std::string& value) { return value.substr(0, kMaxValueBytes); }

class LineLog final : public AuditLog {
 public:
  LineLog(std::string path, std::shared_ptr<spdlog::logger> file)
      : path_(std::move(path)), file_(std::move(file)) {}

  static absl::StatusOr<std::shared_ptr<spdlog::logger>> OpenFile(const std::string& path) {
    if (path.empty()) return nullptr;
    try {  // spdlog's way to say so
      auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
      auto logger = std::make_shared<spdlog::logger>("audit", std::move(sink));
      logger->set_pattern("%v");
      logger->flush_on(spdlog::level::info);
      return logger;
    } catch (const spdlog::spdlog_ex&) {
      return absl::UnavailableError(absl::StrCat("audit_log_file: cannot append to ", path));
    }
  }

  void Write(const AuditEntry& entry) override {
    int64_t suppressed = 0;
    std::shared_ptr<spdlog::logger> file;
    {
      absl::MutexLock lock(&mutex_);
      if (entry.tenant.empty() && !AdmitUnknownLocked()) return;
      suppressed = std::exchange(suppressed_, 0);
      file = file_;
    }
    if (file == nullptr) return ToStandardLog(entry, suppressed);
    nlohmann::ordered_json line;
    line["time"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
    line["level"] = "info";
    line["event"] = "audit";
    line["tenant"] = Bounded(entry.tenant);
    line["credential"] = Bounded(entry.credential);
    line["peer"] = Bounded(entry.peer);
    line["method"] = Bounded(entry.method);
    line["resource"] = Bounded(entry.resource);
    line["outcome"] = Bounded(entry.outcome);
    line["reason"] = Bounded(entry.reason);
    line["suppressed"] = suppressed;
    // Names may hold anything: what is not UTF-8 is replaced, and what is not ASCII escaped, so
    // that a line stays one line whatever reads it.
    file->info(line.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace));
  }

  absl::Status Reopen() override {
    auto opened = OpenFile(path_);
    if (!opened.ok()) return opened.status();
    absl::MutexLock lock(&mutex_);
    file_ = *std::move(opened);
    return absl::OkStatus();
  }

 private:
  static void ToStandardLog(const AuditEntry& entry, int64_t suppressed) {
    Log(LogLevel::kInfo, "audit",
        {{"tenant", Bounded(entry.tenant)},
         {"credential", Bounded(entry.credential)},
         {"peer", Bounded(entry.peer)},
         {"method", Bounded(entry.method)},
         {"resource", Bounded(entry.resource)},
         {"outcome", Bounded(entry.outcome)},
         {"reason", Bounded(entry.reason)},
         {"suppressed", suppressed}});
  }

  bool AdmitUnknownLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Time now = absl::Now();
    if (now - second_began_ >= absl::Seconds(1)) {
      second_began_ = now;
      in_this_second_ = 0;
    }
    if (++in_this_second_ <= kMaxUnknownASecond) return true;
    ++suppressed_;
    return false;
  }

  const std::string path_;
  absl::Mutex mutex_;
  std::shared_ptr<spdlog::logger> file_ ABSL_GUARDED_BY(mutex_);  // null: the standard log
  absl::Time second_began_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  int in_this_second_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t suppressed_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AuditLog>> AuditLog::Open(const std::string& path) {
  auto file = LineLog::OpenFile(path);
  if (!file.ok()) return file.status();
  return std::make_unique<LineLog>(path, *std::move(file));
}

}  // namespace quantd::server
