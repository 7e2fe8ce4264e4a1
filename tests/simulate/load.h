#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/jobs/scheduler.h"

namespace quantd::simulate {

struct Tenant {
  double weight = 1.0;
  server::TenantQuota quota;
};

// A fusion group: when it becomes ready and what it takes, whatever was estimated.
struct Work {
  server::WorkItem item;
  absl::Time ready;
  double seconds = 0.0;
};

// Everything that a simulation needs to know.
struct Load {
  std::vector<server::Scheduler::Slot> slots;
  std::map<std::string, Tenant> tenants;  // others have the default
  absl::Duration ageing = server::Scheduler::kDefaultAgeing;
  std::vector<Work> work;  // by `ready`
  // Of jobs (tenant, id): what has not ended by then is dropped or stopped.
  std::map<std::pair<std::string, std::string>, absl::Time> deadlines;
  // Set where every tenant has work waiting until then: what shares are compared at.
  std::optional<absl::Time> saturated_until;
};

// Adds the work of a file with one JSON object a line. A server's log is one: lines with the event
// "work_ended" count, others are skipped. Fields: job ("tenants/T/jobs/J"), or tenant and job;
// group; ready (seconds since 1970) and seconds; optional estimate (default: seconds), bytes
// (default 0), priority (0 low, 1 normal, 2 high; default 1), deadline (seconds since 1970).
// INVALID_ARGUMENT names the line and the field.
absl::Status ReadWork(const std::string& path, Load& load);

// "acme:weight=2,running=1,day=3600;other": the tenants of a load. INVALID_ARGUMENT says where it
// makes no sense.
absl::StatusOr<std::map<std::string, Tenant>> ParseTenants(absl::string_view text);

// Of every kind of thing at once: tenants that come and go, with and without limits, jobs of three
// priorities, some with deadlines, wrong estimates, slots of one or two sizes that share devices.
Load GenerateMixedLoad(uint64_t seed);
// Tenants without limits that always have work waiting; slots of one size.
Load GenerateSaturatedLoad(uint64_t seed);
// A tenant that had nothing to start for a while comes back with much, while another works on.
Load GenerateReturningLoad(uint64_t seed);

}  // namespace quantd::simulate
