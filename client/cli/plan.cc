#include "client/cli/plan.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/interrupt.h"
#include "client/cli/output_folder.h"
#include "client/cli/plan_text.h"
#include "client/cli/watch_display.h"

namespace quantd::cli {
namespace {

using client::Client;

absl::Status WriteFile(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  if (file) return absl::OkStatus();
  return absl::UnknownError(absl::StrCat("cannot write ", path.string()));
}

// The figure that the plan is about, as a finished layer's report has it.
absl::StatusOr<MeasuredLayer> ReadFigures(const client::ErrorReport& report,
                                          const std::string& figure) {
  const nlohmann::json json = nlohmann::json::parse(report.report_json, nullptr, false);
  const auto error = json.is_object() ? json.find(figure) : json.end();
  if (error == json.end() || !error->is_number()) {
    return absl::DataLossError(absl::StrCat("the report of ", report.layer, " lacks ", figure));
  }
  return MeasuredLayer{report.bits_per_weight, error->get<double>()};
}

// One run and what it has made on the server.
class PlanRun {
 public:
  PlanRun(Client& client, const PlanOptions& options, const Output& output)
      : client_(client), options_(options), output_(output) {}

  absl::Status Measure();
  absl::Status Commit();

  const client::Plan& plan() const { return plan_; }
  const MeasuredLayers& measured() const { return measured_; }
  const std::string& measuring_job() const { return measuring_job_; }
  const std::string& planned_job() const { return planned_job_; }

 private:
  absl::Status Wait(const std::string& job, bool layers_may_fail);
  absl::Status Download(const client::Layer& layer);

  Client& client_;
  const PlanOptions& options_;
  const Output& output_;
  client::Job source_;
  client::Plan plan_;
  MeasuredLayers measured_;
  std::string measuring_job_;
  std::string planned_job_;
};

absl::Status PlanRun::Wait(const std::string& job, bool layers_may_fail) {
  WatchDisplay display(output_, /*every_state=*/false);
  auto ended =
      client_.WatchJob(job, [&](const client::JobUpdate& update) { display.Update(update); });
  display.Finish();
  if (!ended.ok()) return ended.status();
  if (layers_may_fail && ended->state == client::JobState::kFailed) return absl::OkStatus();
  return Outcome(*ended);
}

absl::Status PlanRun::Measure() {
  absl::StatusOr<client::Job> source = client_.GetJob(options_.job);
  if (!source.ok()) return source.status();
  source_ = *std::move(source);
  absl::StatusOr<client::JobSpec> spec =
      client::MeasuringJob(source_, options_.candidates, options_.bits);
  if (!spec.ok()) return spec.status();
  absl::StatusOr<client::CreatedJob> created = client_.CreateJob(*spec);
  if (!created.ok()) return created.status();
  measuring_job_ = created->job.name;
  Note(output_, absl::StrCat("measuring ", spec->layers.size(), " candidates for ",
                             source_.layers.size(), " layers, job ", LastSegment(measuring_job_)));
  if (absl::Status s = Wait(measuring_job_, /*layers_may_fail=*/true); !s.ok()) return s;
  absl::StatusOr<client::Plan> plan = client_.PlanJob(measuring_job_, options_.bits);
  if (!plan.ok()) return plan.status();
  plan_ = *std::move(plan);
  return absl::OkStatus();
}

absl::Status PlanRun::Download(const client::Layer& layer) {
  const std::filesystem::path out = options_.out;
  const std::string stem = absl::StrCat(planned_job_, "/artifacts/", layer.layer_id);
  for (const char* suffix : {".safetensors", ".report.json"}) {
    absl::Status s =
        client_.DownloadArtifact(stem + suffix, out / (LastSegment(layer.layer_id) + suffix));
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status PlanRun::Commit() {
  absl::StatusOr<client::JobSpec> spec = client::PlannedJob(source_, plan_);
  if (!spec.ok()) return spec.status();
  absl::StatusOr<client::CreatedJob> created = client_.CreateJob(*spec);
  if (!created.ok()) return created.status();
  planned_job_ = created->job.name;
  Note(output_, absl::StrCat("quantizing as planned, job ", LastSegment(planned_job_)));
  if (absl::Status s = Wait(planned_job_, /*layers_may_fail=*/false); !s.ok()) return s;
  for (const client::Layer& layer : created->job.layers) {
    if (absl::Status s = Download(layer); !s.ok()) return s;
    absl::StatusOr<client::ErrorReport> report = client_.GetErrorReport(layer.name);
    if (!report.ok()) return report.status();
    absl::StatusOr<MeasuredLayer> figures = ReadFigures(*report, plan_.error_figure);
    if (!figures.ok()) return figures.status();
    measured_[layer.weight_of] = *figures;
  }
  return absl::OkStatus();
}

// With a connection of its own, since an interrupt may have ended the run's.
void CleanUp(const client::ConnectOptions& server, const PlanRun& run, bool failed,
             const PlanOptions& options, const Output& output) {
  const bool cancel = failed && !run.planned_job().empty();
  const bool remove = !options.keep && !run.measuring_job().empty();
  if (!cancel && !remove) return;
  auto client = Client::Connect(server);
  absl::Status status = client.status();
  if (client.ok() && cancel) status.Update((*client)->CancelJob(run.planned_job()).status());
  if (client.ok() && remove) status.Update((*client)->DeleteJob(run.measuring_job()));
  if (!status.ok()) {
    Note(output, absl::StrCat("quantctl: could not clean up: ", status.message()));
  }
}

void PrintPlan(const PlanRun& run, const nlohmann::json& json, const Output& output) {
  if (output.json) {
    std::printf("%s\n", json.dump().c_str());
  } else if (!output.quiet) {
    std::printf("%s", FormatPlan(run.plan(), run.measured()).c_str());
  }
}

}  // namespace

absl::Status Plan(const client::ConnectOptions& server, const PlanOptions& options,
                  const Output& output) {
  if (options.commit) {
    if (absl::Status s = CreateOutputFolder(options.out); !s.ok()) return s;
  }
  auto client = Client::Connect(server);
  if (!client.ok()) return client.status();
  PlanRun run(**client, options, output);
  absl::Status status;
  {
    const InterruptScope scope(**client);
    status = run.Measure();
    if (status.ok() && options.commit) status = run.Commit();
  }
  CleanUp(server, run, !status.ok(), options, output);
  if (!status.ok()) return status;
  nlohmann::json json = PlanToJson(run.plan(), options.bits, run.measured());
  json["job"] = LastSegment(run.planned_job());
  json["measuring_job"] = options.keep ? LastSegment(run.measuring_job()) : "";
  PrintPlan(run, json, output);
  if (!options.commit) return absl::OkStatus();
  const std::filesystem::path file = std::filesystem::path(options.out) / "plan.json";
  if (absl::Status s = WriteFile(file, json.dump(2) + "\n"); !s.ok()) return s;
  if (!output.json && !output.quiet) {
    std::printf("results and %s (job %s)\n", file.c_str(), LastSegment(run.planned_job()).c_str());
  }
  return absl::OkStatus();
}

}  // namespace quantd::cli
