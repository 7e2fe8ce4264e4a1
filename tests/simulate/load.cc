#include "tests/simulate/load.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"

namespace quantd::simulate {
namespace {

using Json = nlohmann::json;
constexpr int64_t kGiB = int64_t{1} << 30;

absl::Status Misread(const std::string& path, int line, absl::string_view field,
                     absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ":", line, ": ", field, ": expected ", expected));
}

// A number of the object that is finite and at least 0; the default where there is none.
absl::Status ReadNumber(const Json& object, const char* field, double& value) {
  if (!object.contains(field)) return absl::OkStatus();
  if (!object[field].is_number()) return absl::InvalidArgumentError(field);
  value = object[field].get<double>();
  if (!std::isfinite(value) || value < 0) return absl::InvalidArgumentError(field);
  return absl::OkStatus();
}

absl::Status ReadLine(const std::string& path, int number, const Json& object, Load& load) {
  for (const char* field : {"job", "group"}) {
    if (!object.contains(field) || !object[field].is_string()) {
      return Misread(path, number, field, "a text");
    }
  }
  for (const char* field : {"ready", "seconds"}) {
    if (!object.contains(field)) return Misread(path, number, field, "a number");
  }
  Work work;
  work.item.job_id = object["job"].get<std::string>();
  work.item.group = object["group"].get<std::string>();
  const std::vector<std::string> parts = absl::StrSplit(work.item.job_id, '/');
  if (parts.size() == 4) {
    work.item.tenant = parts[1];
    work.item.job_id = parts[3];
  } else if (object.contains("tenant") && object["tenant"].is_string()) {
    work.item.tenant = object["tenant"].get<std::string>();
  } else {
    return Misread(path, number, "job", "tenants/T/jobs/J, or a field tenant beside it");
  }
  double ready = 0, bytes = 0, priority = 1, deadline = -1;
  absl::Status status = ReadNumber(object, "ready", ready);
  status.Update(ReadNumber(object, "seconds", work.seconds));
  work.item.estimated_seconds = work.seconds;
  status.Update(ReadNumber(object, "estimate", work.item.estimated_seconds));
  status.Update(ReadNumber(object, "bytes", bytes));
  status.Update(ReadNumber(object, "priority", priority));
  status.Update(ReadNumber(object, "deadline", deadline));
  if (!status.ok()) return Misread(path, number, status.message(), "a number of at least 0");
  if (bytes > 1e18) return Misread(path, number, "bytes", "at most 1e18");
  work.ready = absl::UnixEpoch() + absl::Seconds(ready);
  work.item.peak_bytes = static_cast<int64_t>(bytes);
  work.item.priority = static_cast<int>(std::min<double>(priority, server::kTopPriority));
  if (deadline >= 0) {
    load.deadlines[{work.item.tenant, work.item.job_id}] =
        absl::UnixEpoch() + absl::Seconds(deadline);
  }
  load.work.push_back(std::move(work));
  return absl::OkStatus();
}

void SortByReady(Load& load) {
  std::stable_sort(load.work.begin(), load.work.end(),
                   [](const Work& a, const Work& b) { return a.ready < b.ready; });
}

class Generator {
 public:
  explicit Generator(uint64_t seed) : random_(seed) {}

  int Pick(int n) { return std::uniform_int_distribution<int>(0, n - 1)(random_); }
  double Between(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random_);
  }

  Load Mixed() {
    AddSlots();
    const int tenants = 1 + Pick(5);
    for (int t = 0; t < tenants; ++t) AddTenant(absl::StrCat("t", t));
    SortByReady(load_);
    return std::move(load_);
  }

  Load Saturated() {
    const int slots = 1 + Pick(4);
    const int devices = 1 + Pick(slots);
    for (int i = 0; i < slots; ++i) {
      load_.slots.push_back({absl::StrCat("d", i % devices), 16 * kGiB});
    }
    const int tenants = 2 + Pick(3);
    double weights = 0;
    double least = 4;
    for (int t = 0; t < tenants; ++t) {
      Tenant& tenant = load_.tenants[absl::StrCat("t", t)];
      tenant.weight = 1 + Pick(3);
      weights += tenant.weight;
      least = std::min(least, tenant.weight);
    }
    const double least_share = 120.0;  // device seconds
    const double seconds = least_share * weights / least / slots;
    load_.saturated_until = start_ + absl::Seconds(seconds);
    for (const auto& [name, tenant] : load_.tenants) {
      // A tenth more than its share, and what may run at the end.
      double needed = 1.1 * seconds * slots * tenant.weight / weights + 3.0 * slots;
      for (int i = 0; needed > 0; ++i) {
        const int64_t bytes = (1 + Pick(8)) * kGiB;
        AddWork({name, "job", absl::StrCat(i), 0, bytes, 1}, start_, Between(0.5, 1.5));
        needed -= load_.work.back().seconds;
      }
    }
    return std::move(load_);
  }

  Load Returning() {
    constexpr double kAway = 60.0;
    load_.slots.assign(1 + Pick(2), {"d", 16 * kGiB});
    for (const char* name : {"always", "returns"}) load_.tenants[name].weight = 1 + Pick(2);
    const int items = 100 * static_cast<int>(load_.slots.size());
    for (int i = 0; i < items; ++i) {
      AddWork({"always", "job", absl::StrCat(i), 0, kGiB, 1}, start_, Between(0.8, 1.2));
    }
    for (int i = 0; i < items; ++i) {
      const absl::Duration after = absl::Seconds(i == 0 ? 0.0 : kAway);
      AddWork({"returns", "job", absl::StrCat(i), 0, kGiB, 1}, start_ + after, Between(0.8, 1.2));
    }
    SortByReady(load_);
    return std::move(load_);
  }

 private:
  void AddSlots() {
    const int devices = 1 + Pick(3);
    const bool has_large = Pick(3) == 0;
    for (int d = 0; d < devices; ++d) {
      const int64_t bytes = (has_large && d == 0 ? 80 : 16) * kGiB;
      const int slots = 1 + Pick(2);
      for (int i = 0; i < slots; ++i) load_.slots.push_back({absl::StrCat("d", d), bytes});
      largest_ = std::max(largest_, bytes);
    }
    load_.ageing = absl::Seconds(1 + Pick(40));
    start_ += absl::Seconds(Between(0, 86'400));
  }

  void AddTenant(const std::string& name) {
    Tenant& tenant = load_.tenants[name];
    tenant.weight = 1 + Pick(4);
    if (Pick(3) == 0) tenant.quota.max_running = 1 + Pick(3);
    if (Pick(4) == 0) tenant.quota.max_seconds_per_day = Between(10, 60);
    const int jobs = 1 + Pick(6);
    for (int j = 0; j < jobs; ++j) {
      const std::string job = absl::StrCat("j", j);
      const absl::Time created = start_ + absl::Seconds(Between(0, 60));
      const int priority = Pick(3);
      const int64_t bytes = Pick(4) == 0 ? largest_ / 2 : (1 + Pick(12)) * kGiB;
      const int groups = 1 + Pick(12);
      const bool at_once = Pick(2) == 0;
      for (int g = 0; g < groups; ++g) {
        const absl::Duration after = at_once ? absl::ZeroDuration() : absl::Seconds(Between(0, 30));
        AddWork({name, job, absl::StrCat(g), 0, bytes, priority}, created + after,
                std::exp(Between(-1.0, 1.3)));
      }
      if (Pick(6) == 0) load_.deadlines[{name, job}] = created + absl::Seconds(Between(1, 60));
    }
  }

  // The estimate is off by up to a factor of two.
  void AddWork(server::WorkItem item, absl::Time ready, double seconds) {
    item.estimated_seconds = seconds * std::exp2(Between(-1.0, 1.0));
    load_.work.push_back({std::move(item), ready, seconds});
  }

  std::mt19937_64 random_;
  Load load_;
  absl::Time start_ = absl::UnixEpoch() + absl::Hours(24 * 20'000);
  int64_t largest_ = 0;
};

}  // namespace

absl::Status ReadWork(const std::string& path, Load& load) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) return Misread(path, number, "line", "a JSON object");
    if (object.contains("event") && object["event"] != "work_ended") continue;
    if (absl::Status s = ReadLine(path, number, object, load); !s.ok()) return s;
  }
  if (load.work.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": holds no work (event work_ended)"));
  }
  SortByReady(load);
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, Tenant>> ParseTenants(absl::string_view text) {
  std::map<std::string, Tenant> tenants;
  for (const absl::string_view part : absl::StrSplit(text, ';', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> named =
        absl::StrSplit(part, absl::MaxSplits(':', 1));
    Tenant& tenant = tenants[std::string(named.first)];
    for (const absl::string_view setting : absl::StrSplit(named.second, ',', absl::SkipEmpty())) {
      const std::pair<absl::string_view, absl::string_view> pair =
          absl::StrSplit(setting, absl::MaxSplits('=', 1));
      double value = 0;
      if (!absl::SimpleAtod(pair.second, &value) || !std::isfinite(value) || value <= 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("--tenants: ", setting, ": expected NAME=NUMBER above 0"));
      }
      if (pair.first == "weight") {
        tenant.weight = value;
      } else if (pair.first == "running") {
        tenant.quota.max_running = static_cast<int>(value);
      } else if (pair.first == "day") {
        tenant.quota.max_seconds_per_day = value;
      } else {
        return absl::InvalidArgumentError(absl::StrCat(
            "--tenants: ", setting, ": expected weight, running or day (device seconds)"));
      }
    }
  }
  return tenants;
}

Load GenerateMixedLoad(uint64_t seed) { return Generator(seed).Mixed(); }
Load GenerateSaturatedLoad(uint64_t seed) { return Generator(seed).Saturated(); }
Load GenerateReturningLoad(uint64_t seed) { return Generator(seed).Returning(); }

}  // namespace quantd::simulate
