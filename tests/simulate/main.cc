// simulate: runs loads through the scheduler with a simulated clock, and checks what it promises.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tests/simulate/load.h"
#include "tests/simulate/simulation.h"

namespace quantd::simulate {
namespace {

using Json = nlohmann::json;

struct Options {
  int64_t seeds = 0;
  uint64_t seed = 1;
  std::string load;
  std::string tenants;
  int slots = 0;
  double memory_gib = 16;
  double ageing = absl::ToDoubleSeconds(server::Scheduler::kDefaultAgeing);
  bool json = false;
};

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

Json Figures(const TenantResult& tenant, double all_seconds, double all_weights) {
  const auto starts = static_cast<double>(std::max<size_t>(1, tenant.waits.size()));
  return {{"weight", tenant.weight},
          {"done", tenant.done},
          {"expired", tenant.expired},
          {"left_over", tenant.left_over},
          {"device_seconds", tenant.device_seconds},
          {"share", all_seconds > 0 ? tenant.device_seconds / all_seconds : 0.0},
          {"weight_share", tenant.weight / all_weights},
          {"wait_mean", std::accumulate(tenant.waits.begin(), tenant.waits.end(), 0.0) / starts},
          {"wait_p50", Quantile(tenant.waits, 0.5)},
          {"wait_p95", Quantile(tenant.waits, 0.95)},
          {"wait_max", Quantile(tenant.waits, 1.0)},
          {"quota_seconds", tenant.quota_seconds}};
}

Json ToJson(const Result& result) {
  double weights = 0;
  for (const auto& [name, tenant] : result.tenants) weights += tenant.weight;
  Json json = {{"seconds", result.seconds},
               {"slots", result.slots},
               {"utilisation", result.busy_seconds / std::max(1e-9, result.seconds * result.slots)},
               {"preemptions_by_priority", result.preemptions.by_priority},
               {"preemptions_by_share", result.preemptions.by_share},
               {"worst_wait_of_bound", result.worst_wait_of_bound},
               {"violations", result.violations}};
  for (const auto& [name, tenant] : result.tenants) {
    json["tenants"][name] = Figures(tenant, result.busy_seconds, weights);
  }
  return json;
}

void PrintTable(const Json& json) {
  std::printf("%-16s %6s %6s %7s %9s %7s %7s %9s %9s %9s %9s\n", "TENANT", "WEIGHT", "DONE",
              "EXPIRED", "DEVICE s", "SHARE", "WEIGHT", "WAIT p50", "WAIT p95", "WAIT max",
              "QUOTA s");
  for (const auto& [name, t] : json["tenants"].items()) {
    std::printf("%-16s %6g %6d %7d %9.1f %6.1f%% %6.1f%% %9.1f %9.1f %9.1f %9.1f\n", name.c_str(),
                t["weight"].get<double>(), t["done"].get<int>(), t["expired"].get<int>(),
                t["device_seconds"].get<double>(), 100 * t["share"].get<double>(),
                100 * t["weight_share"].get<double>(), t["wait_p50"].get<double>(),
                t["wait_p95"].get<double>(), t["wait_max"].get<double>(),
                t["quota_seconds"].get<double>());
    if (t["left_over"] > 0) {
      std::printf("  %d of its layers fit no slot or no day\n", t["left_over"].get<int>());
    }
  }
  std::printf(
      "\n%.1f s on %d slots, %.1f %% busy; gave way to another job of the tenant %d times, "
      "to another tenant %d times\n",
      json["seconds"].get<double>(), json["slots"].get<int>(),
      100 * json["utilisation"].get<double>(), json["preemptions_by_priority"].get<int>(),
      json["preemptions_by_share"].get<int>());
  for (const auto& violation : json["violations"]) {
    std::printf("BROKEN: %s\n", violation.get<std::string>().c_str());
  }
}

int Replay(const Options& options) {
  Load load = options.load.empty() ? GenerateMixedLoad(options.seed) : Load{};
  if (!options.load.empty()) {
    load.ageing = absl::Seconds(options.ageing);
    if (const absl::Status s = ReadWork(options.load, load); !s.ok()) {
      std::cerr << "simulate: " << s.message() << "\n";
      return 2;
    }
  }
  if (!options.tenants.empty()) {
    auto tenants = ParseTenants(options.tenants);
    if (!tenants.ok()) {
      std::cerr << "simulate: " << tenants.status().message() << "\n";
      return 2;
    }
    load.tenants = *std::move(tenants);
  }
  if (options.slots > 0 || load.slots.empty()) {
    const auto bytes = static_cast<int64_t>(options.memory_gib * (int64_t{1} << 30));
    load.slots.assign(std::max(1, options.slots), {.device = "device", .memory_bytes = bytes});
  }
  const Json json = ToJson(Simulate(load, options.seed));
  options.json ? void(std::cout << json.dump() << "\n") : PrintTable(json);
  return json["violations"].empty() ? 0 : 1;
}

// Three loads a seed. Says where a promise breaks, so that `--seed` shows it.
int CheckSeeds(const Options& options) {
  const auto begin = std::chrono::steady_clock::now();
  int64_t starts = 0;
  int64_t preemptions = 0;
  int64_t expired = 0;
  double quota_seconds = 0;
  int64_t broken = 0;
  double worst_wait = 0;
  double worst_share = 0;
  for (int64_t i = 0; i < options.seeds; ++i) {
    const uint64_t seed = options.seed + static_cast<uint64_t>(i);
    for (const Load& load :
         {GenerateMixedLoad(seed), GenerateSaturatedLoad(seed), GenerateReturningLoad(seed)}) {
      const Result result = Simulate(load, seed);
      for (const auto& [name, tenant] : result.tenants) {
        starts += static_cast<int64_t>(tenant.waits.size());
        expired += tenant.expired;
        quota_seconds += tenant.quota_seconds;
      }
      preemptions += result.preemptions.by_priority + result.preemptions.by_share;
      worst_wait = std::max(worst_wait, result.worst_wait_of_bound);
      worst_share = std::max(worst_share, result.worst_share_error);
      broken += !result.violations.empty();
      for (const std::string& violation : result.violations) {
        std::cerr << "seed " << seed << (load.saturated_until ? " (saturated)" : "") << ": "
                  << violation << "\n";
      }
      if (broken > 20) return 1;
    }
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const Json json = {{"seeds", options.seeds},
                     {"first_seed", options.seed},
                     {"starts", starts},
                     {"preemptions", preemptions},
                     {"expired", expired},
                     {"quota_seconds", quota_seconds},
                     {"broken_seeds", broken},
                     {"worst_wait_of_bound", worst_wait},
                     {"worst_share_error", worst_share},
                     {"milliseconds_per_seed", 1e3 * seconds / static_cast<double>(options.seeds)}};
  if (options.json) {
    std::cout << json.dump() << "\n";
  } else {
    for (const auto& [name, value] : json.items()) {
      std::cout << absl::StrFormat("%-24s %s\n", name, value.dump());
    }
  }
  return broken == 0 ? 0 : 1;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app{
      "Runs a load through quantd's scheduler with a simulated clock and prints waits, shares and\n"
      "utilisation of each tenant: a generated load, or with --load what a server has logged. "
      "With\n"
      "--seeds, generates so many loads and checks every promise of docs/reliability.md.\n"
      "Exit status: 0 all kept, 1 one broken, 2 wrong usage."};
  app.add_option("--seeds", options.seeds, "Check so many generated loads")
      ->check(CLI::PositiveNumber);
  app.add_option("--seed", options.seed, "The generated load, or the first of them")
      ->capture_default_str();
  app.add_option("--load", options.load,
                 "Work to replay: a server's log, or one JSON object a line with job, group, "
                 "ready, seconds and optionally tenant, estimate, bytes, priority, deadline")
      ->check(CLI::ExistingFile);
  app.add_option("--tenants", options.tenants,
                 "Weights and limits: \"acme:weight=2,running=1,day=3600;other\" (day: device "
                 "seconds)");
  app.add_option("--slots", options.slots, "Slots of one device [1 for --load]");
  app.add_option("--memory", options.memory_gib, "GiB of that device")->capture_default_str();
  app.add_option("--ageing", options.ageing, "Seconds that a class of priority is worth")
      ->capture_default_str();
  app.add_flag("--json", options.json, "One JSON object instead of a table");
  CLI11_PARSE(app, argc, argv);
  return options.seeds > 0 ? CheckSeeds(options) : Replay(options);
}

}  // namespace
}  // namespace quantd::simulate

int main(int argc, char** argv) { return quantd::simulate::Main(argc, argv); }
