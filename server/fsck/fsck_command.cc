#include "server/fsck/fsck_command.h"

#include <algorithm>
#include <cstdio>

#include "nlohmann/json.hpp"
#include "server/fsck/fsck.h"

namespace quantd::server {
namespace {

constexpr int kClean = 0;
constexpr int kRepaired = 1;
constexpr int kDamaged = 4;
constexpr int kNotChecked = 8;

int ExitStatus(const FsckReport& report) {
  int status = kClean;
  for (const Finding& finding : report.findings) {
    if (!finding.garbage) status = std::max(status, finding.repaired ? kRepaired : kDamaged);
  }
  return status;
}

void PrintJson(const FsckOptions& options, const FsckReport& report) {
  nlohmann::json findings = nlohmann::json::array();
  for (const Finding& finding : report.findings) {
    findings.push_back({{"kind", finding.kind},
                        {"subject", finding.subject},
                        {"what", finding.what},
                        {"garbage", finding.garbage},
                        {"remedy", finding.remedy},
                        {"repaired", finding.repaired}});
  }
  const nlohmann::json line = {{"data_dir", options.data_dir},    {"jobs", report.jobs},
                               {"statistics", report.statistics}, {"blobs", report.blobs},
                               {"bytes", report.bytes},           {"findings", findings}};
  std::printf("%s\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

void PrintText(const FsckReport& report) {
  int damaged = 0;
  for (const Finding& finding : report.findings) {
    damaged += finding.garbage ? 0 : 1;
    std::printf("%s %s: %s\n", finding.kind.c_str(), finding.subject.c_str(), finding.what.c_str());
    if (finding.repaired) {
      std::printf("  repaired: %s\n", finding.remedy.c_str());
    } else if (!finding.remedy.empty()) {
      std::printf("  --repair: %s\n", finding.remedy.c_str());
    }
  }
  std::printf("%lld jobs, %lld statistics, %lld blobs of %lld bytes: %d damaged, %zu left over\n",
              static_cast<long long>(report.jobs), static_cast<long long>(report.statistics),
              static_cast<long long>(report.blobs), static_cast<long long>(report.bytes), damaged,
              report.findings.size() - static_cast<size_t>(damaged));
}

}  // namespace

CLI::App* AddFsckCommand(CLI::App& app, FsckOptions& options) {
  CLI::App* const command = app.add_subcommand(
      "fsck",
      "Checks the data directory of a server that does not run.\n"
      "Exit status: 0 no damage, 1 damage was repaired, 4 damage is left, 8 not checked.");
  command->add_option("--data_dir,--data-dir", options.data_dir, "directory to check [./data]");
  command->add_flag("--repair", options.repair,
                    "remove what is left over, put damaged files into quarantine/ and bring the "
                    "records in line");
  command->add_flag("--json", options.json, "one JSON object on stdout");
  return command;
}

int RunFsck(const FsckOptions& options) {
  const absl::StatusOr<FsckReport> report = CheckDataDirectory(options.data_dir, options.repair);
  if (!report.ok()) {
    std::fprintf(stderr, "quantd fsck: %s\n", std::string(report.status().message()).c_str());
    return kNotChecked;
  }
  options.json ? PrintJson(options, *report) : PrintText(*report);
  return ExitStatus(*report);
}

}  // namespace quantd::server
