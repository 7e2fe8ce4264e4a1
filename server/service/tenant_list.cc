#include "server/service/tenant_list.h"

#include <map>
#include <string>

#include "absl/strings/str_cat.h"

namespace quantd::server {
namespace {

template <typename Value>
Value At(const std::map<std::string, Value>& values, const std::string& tenant) {
  const auto found = values.find(tenant);
  return found == values.end() ? Value() : found->second;
}

// What is known of all tenants, read once for a list.
struct Usage {
  std::map<std::string, JobStore::Counts> counts;
  std::map<std::string, int64_t> stored;
  std::map<std::string, int> streams;
  std::map<std::string, int> uploads;
  std::map<std::string, int> calls;
  std::map<std::string, Scheduler::TenantLoad> loads;
};

void Fill(const TenantSources& sources, const TenantConfig& tenant, v1::TenantQuotas& quotas) {
  const TenantCalls::Limits calls = sources.access.calls().LimitsOf(tenant.name);
  quotas.set_weight(tenant.weight);
  quotas.set_max_jobs(sources.limits.max_jobs_per_tenant);
  quotas.set_max_statistics(sources.limits.max_statistics_per_tenant);
  quotas.set_max_streams(sources.limits.max_streams_per_tenant);
  quotas.set_max_calls(calls.calls);
  quotas.set_max_messages_per_second(calls.messages_per_second);
  quotas.set_max_stored_bytes(tenant.max_stored_bytes > 0 ? tenant.max_stored_bytes
                                                          : sources.limits.max_stored_bytes);
  quotas.set_max_running_layers(tenant.max_running_layers);
  quotas.set_max_device_seconds_per_day(tenant.max_device_seconds_per_day);
}

void Fill(const Usage& usage, const std::string& tenant, v1::TenantUsage& out) {
  const JobStore::Counts counts = At(usage.counts, tenant);
  const Scheduler::TenantLoad load = At(usage.loads, tenant);
  out.set_jobs(counts.jobs);
  out.set_statistics(counts.statistics);
  out.set_streams(At(usage.streams, tenant));
  out.set_uploads(At(usage.uploads, tenant));
  out.set_calls(At(usage.calls, tenant));
  out.set_stored_bytes(At(usage.stored, tenant));
  out.set_running_layers(load.running);
  out.set_waiting_layers(load.waiting);
  out.set_device_seconds(load.device_seconds);
  out.set_device_seconds_today(load.seconds_today);
}

}  // namespace

absl::StatusOr<v1::ListTenantsResponse> ListTenants(const TenantSources& sources) {
  Usage usage;
  auto counts = sources.jobs.CountByTenant();
  if (!counts.ok()) return counts.status();
  usage.counts = *std::move(counts);
  auto stored = sources.blobs.StoredBytes();
  if (!stored.ok()) return stored.status();
  usage.stored = *std::move(stored);
  usage.streams = sources.statistics.OpenStreams();
  usage.uploads = sources.uploads.OpenUploads();
  usage.calls = sources.access.calls().OpenCalls();
  usage.loads = sources.engine.Loads();

  std::map<std::string, TenantConfig> all;
  for (const auto& [name, unused] : usage.counts) all[name].name = name;
  for (const auto& [name, unused] : usage.stored) all[name].name = name;
  std::map<std::string, bool> configured;
  for (const TenantConfig& tenant : sources.access.tenants()) {
    all[tenant.name] = tenant;
    configured[tenant.name] = true;
  }
  v1::ListTenantsResponse response;
  for (const auto& [name, tenant] : all) {
    v1::Tenant* out = response.add_tenants();
    out->set_name(absl::StrCat("tenants/", name));
    out->set_configured(At(configured, name));
    Fill(sources, tenant, *out->mutable_quotas());
    Fill(usage, name, *out->mutable_usage());
  }
  return response;
}

}  // namespace quantd::server
