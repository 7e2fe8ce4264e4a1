#include "client/cli/inspect.h"

#include <cstdio>
#include <nlohmann/json.hpp>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/interrupt.h"
#include "client/cli/report_text.h"
#include "client/cli/watch_display.h"

namespace quantd::cli {
namespace {

using nlohmann::json;

void Print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }
void PrintLine(const json& object) { Print(object.dump() + "\n"); }

std::string Rfc3339(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
}

json ToJson(const client::Job& job) {
  json object = {{"job", LastSegment(job.name)},
                 {"name", job.name},
                 {"display_name", job.display_name},
                 {"state", std::string(NameOf(job.state))},
                 {"recipe", json::parse(compute::ToJson(job.recipe), nullptr, false)},
                 {"finished_layers", job.finished_layers},
                 {"create_time", Rfc3339(job.create_time)},
                 {"end_time", nullptr}};
  if (job.end_time) object["end_time"] = Rfc3339(*job.end_time);
  object["priority"] = std::string(NameOf(job.priority));
  object["deadline"] = job.deadline ? json(Rfc3339(*job.deadline)) : json(nullptr);
  object["queue_position"] = job.queue_position;
  object["eta_seconds"] = job.eta_seconds ? json(*job.eta_seconds) : json(nullptr);
  if (job.quota_wait) {
    object["quota_wait"] = {{"quota", job.quota_wait->quota},
                            {"description", job.quota_wait->description}};
    if (job.quota_wait->until) object["quota_wait"]["until"] = Rfc3339(*job.quota_wait->until);
  }
  for (const client::Layer& layer : job.layers) {
    object["layers"].push_back({{"layer", layer.layer_id},
                                {"rows", layer.rows},
                                {"cols", layer.cols},
                                {"state", std::string(NameOf(layer.state))},
                                {"stage", layer.stage},
                                {"progress", layer.progress},
                                {"device_seconds", layer.device_seconds},
                                {"error", std::string(layer.error.message())}});
  }
  return object;
}

json ToJson(const client::Tenant& tenant) {
  const auto& [quotas, usage] = std::tie(tenant.quotas, tenant.usage);
  return {{"tenant", LastSegment(tenant.name)},
          {"name", tenant.name},
          {"configured", tenant.configured},
          {"quotas",
           {{"weight", quotas.weight},
            {"max_jobs", quotas.max_jobs},
            {"max_statistics", quotas.max_statistics},
            {"max_streams", quotas.max_streams},
            {"max_calls", quotas.max_calls},
            {"max_messages_per_second", quotas.max_messages_per_second},
            {"max_stored_bytes", quotas.max_stored_bytes},
            {"max_running_layers", quotas.max_running_layers},
            {"max_device_seconds_per_day", quotas.max_device_seconds_per_day}}},
          {"usage",
           {{"jobs", usage.jobs},
            {"statistics", usage.statistics},
            {"streams", usage.streams},
            {"uploads", usage.uploads},
            {"calls", usage.calls},
            {"stored_bytes", usage.stored_bytes},
            {"running_layers", usage.running_layers},
            {"waiting_layers", usage.waiting_layers},
            {"device_seconds", usage.device_seconds},
            {"device_seconds_today", usage.device_seconds_today}}}};
}

json ToJson(const client::Statistic& statistic) {
  return {{"statistic", LastSegment(statistic.name)},
          {"name", statistic.name},
          {"state", std::string(NameOf(statistic.state))},
          {"kind", std::string(NameOf(statistic.kind))},
          {"layout", statistic.layout == client::MomentLayout::kFull ? "full" : "block_diagonal"},
          {"block_size", statistic.block_size},
          {"cols", statistic.cols},
          {"paired_cols", statistic.paired_cols},
          {"tokens", statistic.tokens},
          {"sample_rows", statistic.sample_rows},
          {"digest", statistic.digest},
          {"size_bytes", statistic.size_bytes},
          {"create_time", Rfc3339(statistic.create_time)}};
}

json ToJson(const client::ServerInfo& info) {
  json devices = json::array();
  for (const auto& device : info.devices) {
    json& shown = devices.emplace_back(json{{"name", device.name},
                                            {"description", device.description},
                                            {"memory_bytes", device.memory_bytes},
                                            {"running_layers", device.running_layers},
                                            {"uuid", device.uuid}});
    if (device.utilisation.has_value()) shown["utilisation"] = *device.utilisation;
  }
  return {{"version", info.version},
          {"tenant", info.tenant},
          {"devices", devices},
          {"formats", info.formats},
          {"transforms", info.transforms},
          {"methods", info.methods},
          {"limits",
           {{"max_message_bytes", info.limits.max_message_bytes},
            {"max_chunk_bytes", info.limits.max_chunk_bytes},
            {"max_dimension", info.limits.max_dimension},
            {"max_layers_per_job", info.limits.max_layers_per_job},
            {"max_jobs_per_tenant", info.limits.max_jobs_per_tenant},
            {"max_streams_per_tenant", info.limits.max_streams_per_tenant},
            {"stream_credit_bytes", info.limits.stream_credit_bytes},
            {"max_inline_bytes", info.limits.max_inline_bytes}}}};
}

// Layer names of the reports to show.
absl::StatusOr<std::vector<client::Layer>> LayersToReport(const client::Job& job,
                                                          const std::string& layer_id) {
  std::vector<client::Layer> layers;
  for (const client::Layer& layer : job.layers) {
    const bool wanted = layer_id.empty() ? layer.state == client::LayerState::kSucceeded
                                         : layer.layer_id == layer_id;
    if (wanted) layers.push_back(layer);
  }
  if (!layers.empty()) return layers;
  if (!layer_id.empty()) {
    return absl::NotFoundError(
        absl::StrCat("job ", LastSegment(job.name), " has no layer ", layer_id));
  }
  if (absl::Status outcome = Outcome(job); HasEnded(job.state) && !outcome.ok()) return outcome;
  return absl::FailedPreconditionError(absl::StrCat(
      "job ", LastSegment(job.name), " is ", NameOf(job.state), ": no layer has a report yet"));
}

}  // namespace

absl::Status ShowInfo(client::Client& client, const Output& output) {
  const absl::StatusOr<client::ServerInfo> info = client.GetServerInfo();
  if (!info.ok()) return info.status();
  if (output.json) {
    PrintLine(ToJson(*info));
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {{"version", info->version},
                                                {"tenant", info->tenant}};
  for (const auto& device : info->devices) {
    std::string text =
        absl::StrCat(device.name, ": ", device.description, ", ", HumanBytes(device.memory_bytes),
                     ", ", device.running_layers, " layers running");
    if (device.utilisation.has_value()) {
      absl::StrAppendFormat(&text, ", %.0f %% busy", 100 * *device.utilisation);
    }
    rows.push_back({"device", std::move(text)});
  }
  rows.push_back({"formats", absl::StrJoin(info->formats, " ")});
  rows.push_back({"transforms", absl::StrJoin(info->transforms, " ")});
  rows.push_back({"methods", absl::StrJoin(info->methods, " ")});
  rows.push_back({"limits", absl::StrCat(info->limits.max_layers_per_job, " layers a job, ",
                                         info->limits.max_jobs_per_tenant, " jobs, ",
                                         info->limits.max_streams_per_tenant, " streams, ",
                                         HumanBytes(info->limits.max_chunk_bytes), " a chunk, ",
                                         HumanBytes(info->limits.stream_credit_bytes),
                                         " in flight a stream")});
  Print(FormatTable(rows));
  return absl::OkStatus();
}

absl::Status ShowJobs(client::Client& client, const Output& output) {
  const absl::StatusOr<std::vector<client::Job>> jobs = client.ListJobs();
  if (!jobs.ok()) return jobs.status();
  std::vector<std::vector<std::string>> rows = {
      {"JOB", "STATE", "PRIORITY", "QUEUE", "RECIPE", "FINISHED", "CREATED", "NAME"}};
  for (const client::Job& job : *jobs) {
    if (output.json) PrintLine(ToJson(job));
    rows.push_back({LastSegment(job.name), std::string(NameOf(job.state)),
                    std::string(NameOf(job.priority)), DescribeQueue(job),
                    DescribeRecipe(job.recipe), absl::StrCat(job.finished_layers),
                    LocalTime(job.create_time), job.display_name});
  }
  if (!output.json) Print(rows.size() == 1 ? "no jobs\n" : FormatTable(rows, {5}));
  return absl::OkStatus();
}

absl::Status ShowStatistics(client::Client& client, const Output& output) {
  const absl::StatusOr<std::vector<client::Statistic>> statistics = client.ListStatistics();
  if (!statistics.ok()) return statistics.status();
  std::vector<std::vector<std::string>> rows = {
      {"STATISTIC", "STATE", "KIND", "LAYOUT", "COLS", "TOKENS", "SAMPLE", "SIZE", "CREATED"}};
  for (const client::Statistic& each : *statistics) {
    if (output.json) PrintLine(ToJson(each));
    rows.push_back(
        {LastSegment(each.name), std::string(NameOf(each.state)), std::string(NameOf(each.kind)),
         each.layout == client::MomentLayout::kFull ? "full"
                                                    : absl::StrCat("blocks of ", each.block_size),
         absl::StrCat(each.cols), absl::StrCat(each.tokens), absl::StrCat(each.sample_rows),
         HumanBytes(each.size_bytes), LocalTime(each.create_time)});
  }
  if (!output.json) Print(rows.size() == 1 ? "no statistics\n" : FormatTable(rows, {4, 5, 6, 7}));
  return absl::OkStatus();
}

absl::Status ShowTenants(client::Client& client, const Output& output) {
  const absl::StatusOr<std::vector<client::Tenant>> tenants = client.ListTenants();
  if (!tenants.ok()) return tenants.status();
  const auto of = [](auto used, auto most) {
    return most == 0 ? absl::StrCat(used) : absl::StrCat(used, " of ", most);
  };
  std::vector<std::vector<std::string>> rows = {{"TENANT", "WEIGHT", "JOBS", "STATISTICS",
                                                 "STREAMS", "CALLS", "STORED", "RUNNING", "WAITING",
                                                 "DEVICE S TODAY", "DEVICE S"}};
  for (const client::Tenant& each : *tenants) {
    if (output.json) PrintLine(ToJson(each));
    const auto& [quotas, usage] = std::tie(each.quotas, each.usage);
    rows.push_back(
        {LastSegment(each.name), each.configured ? absl::StrCat(quotas.weight) : "removed",
         of(usage.jobs, quotas.max_jobs), of(usage.statistics, quotas.max_statistics),
         of(usage.streams, quotas.max_streams), of(usage.calls, quotas.max_calls),
         quotas.max_stored_bytes == 0 ? HumanBytes(usage.stored_bytes)
                                      : absl::StrCat(HumanBytes(usage.stored_bytes), " of ",
                                                     HumanBytes(quotas.max_stored_bytes)),
         of(usage.running_layers, quotas.max_running_layers), absl::StrCat(usage.waiting_layers),
         of(usage.device_seconds_today, quotas.max_device_seconds_per_day),
         absl::StrCat(usage.device_seconds)});
  }
  if (!output.json) Print(FormatTable(rows, {2, 3, 4, 5, 6, 7, 8, 9, 10}));
  return absl::OkStatus();
}

absl::Status WatchJob(client::Client& client, const std::string& job, const Output& output) {
  Output shown = output;
  shown.quiet = output.quiet || output.json;
  WatchDisplay display(shown, /*every_state=*/true);
  const InterruptScope scope(client);
  const auto last = client.WatchJob(job, [&](const client::JobUpdate& update) {
    if (output.json) {
      PrintLine(ToJson(update.job));
      std::fflush(stdout);
    }
    display.Update(update);
  });
  display.Finish();
  if (absl::IsCancelled(last.status()) && last.status().message() == "interrupted") {
    return absl::CancelledError("stopped watching; the job goes on");
  }
  if (!last.ok()) return last.status();
  if (!shown.quiet) {
    Print(absl::StrCat("job ", LastSegment(last->name), ": ", NameOf(last->state), "\n"));
  }
  return Outcome(*last);
}

absl::Status CancelJob(client::Client& client, const std::string& job, const Output& output) {
  const absl::StatusOr<client::Job> cancelled = client.CancelJob(job);
  if (!cancelled.ok()) return cancelled.status();
  if (output.json) {
    PrintLine(ToJson(*cancelled));
  } else if (!output.quiet) {
    Print(absl::StrCat("job ", LastSegment(cancelled->name), ": ", NameOf(cancelled->state), "\n"));
  }
  return absl::OkStatus();
}

absl::Status DeleteJob(client::Client& client, const std::string& job, const Output& output) {
  if (absl::Status status = client.DeleteJob(job); !status.ok()) return status;
  if (!output.quiet) Print(absl::StrCat("job ", LastSegment(job), ": deleted\n"));
  return absl::OkStatus();
}

absl::Status ShowReports(client::Client& client, const std::string& job, const std::string& layer,
                         const Output& output) {
  const absl::StatusOr<client::Job> whole = client.GetJob(job);
  if (!whole.ok()) return whole.status();
  const absl::StatusOr<std::vector<client::Layer>> layers = LayersToReport(*whole, layer);
  if (!layers.ok()) return layers.status();
  for (const client::Layer& each : *layers) {
    const absl::StatusOr<client::ErrorReport> report = client.GetErrorReport(each.name);
    if (!report.ok()) return report.status();
    Print(output.json ? OneLine(report->report_json) + "\n"
                      : FormatReport(each.layer_id, report->report_json));
  }
  return absl::OkStatus();
}

}  // namespace quantd::cli
