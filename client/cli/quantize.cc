#include "client/cli/quantize.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/substitute.h"
#include "absl/time/clock.h"
#include "client/cli/input_tensor.h"
#include "client/cli/interrupt.h"
#include "client/cli/report_text.h"
#include "client/cli/watch_display.h"
#include "compute/tensor/tensor.h"

namespace quantd::cli {
namespace {

using client::Client;

// The files of a run, checked against each other before the server hears of it.
struct Inputs {
  InputTensor weight;
  std::optional<InputTensor> activations;
  std::optional<InputTensor> second_moment;
};

absl::Status CheckColumns(const InputTensor& weight, const InputTensor& other) {
  if (other.cols() == weight.cols()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::Substitute("$0: tensor `$1`: expected $2 columns as the weight has, got $3", other.path,
                       other.entry.name, weight.cols(), other.cols()));
}

absl::StatusOr<Inputs> OpenInputs(const QuantizeOptions& options) {
  Inputs inputs;
  auto weight = PickTensor(options.weights, options.tensor, "weight", /*any_rank=*/false);
  if (!weight.ok()) return weight.status();
  inputs.weight = *std::move(weight);
  if (!options.activations.empty()) {
    auto picked = PickTensor(options.activations, options.activations_tensor, "activations", true);
    if (!picked.ok()) return picked.status();
    inputs.activations = *std::move(picked);
    absl::Status status = CheckColumns(inputs.weight, *inputs.activations);
    if (!status.ok()) return status;
    if (inputs.activations->rows() == 0) {
      return absl::InvalidArgumentError(
          absl::Substitute("$0: tensor `$1`: expected at least 1 token, got 0", options.activations,
                           inputs.activations->entry.name));
    }
  }
  if (!options.second_moment.empty()) {
    auto picked =
        PickTensor(options.second_moment, options.second_moment_tensor, "second_moment", false);
    if (!picked.ok()) return picked.status();
    inputs.second_moment = *std::move(picked);
    const InputTensor& moment = *inputs.second_moment;
    if (absl::Status status = CheckColumns(inputs.weight, moment); !status.ok()) return status;
    if (moment.rows() != moment.cols()) {
      return absl::InvalidArgumentError(absl::Substitute(
          "$0: tensor `$1`: expected a square matrix (columns x columns), got $2 x $3", moment.path,
          moment.entry.name, moment.rows(), moment.cols()));
    }
  }
  return inputs;
}

std::string RandomName() {
  std::random_device random;
  return absl::StrFormat("quantctl-%08x%04x", random(), random() & 0xffffu);
}

// One run and what it has made on the server.
class Run {
 public:
  Run(Client& client, const QuantizeOptions& options, const Inputs& inputs, const Output& output)
      : client_(client), options_(options), inputs_(inputs), output_(output), bar_(output) {}

  absl::Status Execute();
  const std::string& job_name() const { return job_.name; }
  // The statistic that this run made for itself alone; empty where there is none.
  std::string own_statistic() const {
    return HasData() && options_.statistic.empty() ? statistic_ : "";
  }
  void CleanUp();

 private:
  absl::Status CreateJob();
  absl::Status UploadWeights();
  absl::Status Calibrate();
  absl::Status ImportMoment();
  absl::Status Wait();
  absl::Status Download();

  client::ProgressCallback ShowBytes(const char* label) {
    return [this, label](int64_t done, int64_t total) { bar_.ShowBytes(label, done, total); };
  }
  bool HasData() const { return inputs_.activations || inputs_.second_moment; }

  Client& client_;
  const QuantizeOptions& options_;
  const Inputs& inputs_;
  const Output& output_;
  ProgressBar bar_;
  std::string statistic_;  // full name; empty without calibration data
  client::Job job_;
};

absl::Status Run::Execute() {
  if (!options_.statistic.empty()) {
    statistic_ = client_.StatisticName(options_.statistic);
  } else if (HasData()) {
    statistic_ = client_.StatisticName(RandomName());
  }
  if (absl::Status status = CreateJob(); !status.ok()) return status;
  if (absl::Status status = UploadWeights(); !status.ok()) return status;
  if (absl::Status status = Calibrate(); !status.ok()) return status;
  bar_.Clear();
  if (absl::Status status = Wait(); !status.ok()) return status;
  return Download();
}

absl::Status Run::CreateJob() {
  client::JobSpec spec;
  spec.job_id = options_.job_id;
  spec.display_name = std::filesystem::path(options_.weights).filename().string().substr(0, 200);
  spec.recipe = options_.recipe;
  client::Layer layer;
  layer.layer_id = LayerIdOf(inputs_.weight.entry.name);
  layer.rows = inputs_.weight.rows();
  layer.cols = inputs_.weight.cols();
  layer.dtype = inputs_.weight.entry.dtype;
  layer.statistic = statistic_;
  spec.layers.push_back(std::move(layer));
  absl::StatusOr<client::CreatedJob> created = client_.CreateJob(spec);
  if (!created.ok()) return created.status();
  job_ = std::move(created->job);
  if (job_.layers.size() != 1) {
    return absl::InternalError(
        absl::StrCat("the server made a job of ", job_.layers.size(), " layers instead of 1"));
  }
  if (!bar_.visible()) Note(output_, absl::StrCat("job ", LastSegment(job_.name)));
  return absl::OkStatus();
}

absl::Status Run::UploadWeights() {
  auto source = inputs_.weight.Open();
  if (!source.ok()) return source.status();
  return client_.UploadWeights(job_.layers.front(), **source, ShowBytes("uploading weights"));
}

absl::Status Run::Calibrate() {
  if (inputs_.second_moment) return ImportMoment();
  if (!inputs_.activations) return absl::OkStatus();
  auto source = inputs_.activations->Open();
  if (!source.ok()) return source.status();
  client::ActivationStreamSpec spec;
  spec.statistic = statistic_;
  spec.stream_id = "quantctl";
  spec.dtype = inputs_.activations->entry.dtype;
  spec.cols = inputs_.activations->cols();
  if (options_.block_diagonal) {
    spec.layout = client::MomentLayout::kBlockDiagonal;
    spec.block_size = job_.recipe.transform_block_size;  // as the server resolved it
  }
  spec.sample_rows = options_.sample_rows;
  spec.sample_seed = options_.sample_seed;
  absl::Status status =
      client_.StreamActivations(spec, **source, ShowBytes("streaming activations"));
  if (!status.ok()) return status;
  return client_.SealStatistic(statistic_).status();
}

absl::Status Run::ImportMoment() {
  const InputTensor& moment = *inputs_.second_moment;
  auto source = moment.Open();
  if (!source.ok()) return source.status();
  client::MomentSpec spec;
  spec.statistic = statistic_;
  spec.cols = moment.cols();
  spec.dtype = moment.entry.dtype;
  spec.tokens = options_.tokens;
  std::vector<float> widened;
  if (spec.dtype == compute::DType::kF16 || spec.dtype == compute::DType::kBF16) {
    std::vector<std::byte> narrow(static_cast<size_t>(moment.entry.size));
    if (absl::Status status = (*source)->Read(0, absl::MakeSpan(narrow)); !status.ok()) {
      return status;
    }
    const int64_t elements = moment.rows() * moment.cols();
    widened.resize(static_cast<size_t>(elements));
    compute::ConvertToFloat(spec.dtype, narrow.data(), elements, widened.data());
    spec.dtype = compute::DType::kF32;
    *source = client::MemorySource(
        {reinterpret_cast<const std::byte*>(widened.data()), widened.size() * sizeof(float)});
  }
  return client_.ImportStatistic(spec, **source, ShowBytes("sending second moment")).status();
}

absl::Status Run::Wait() {
  WatchDisplay display(output_, /*every_state=*/false);
  auto job =
      client_.WatchJob(job_.name, [&](const client::JobUpdate& update) { display.Update(update); });
  display.Finish();
  if (!job.ok()) return job.status();
  job_ = *std::move(job);
  return Outcome(job_);
}

absl::Status Run::Download() {
  const std::string stem = absl::StrCat(job_.name, "/artifacts/", job_.layers.front().layer_id);
  const std::filesystem::path out = options_.out;
  absl::Status status = client_.DownloadArtifact(stem + ".safetensors", out / "result.safetensors",
                                                 ShowBytes("downloading result"));
  if (!status.ok()) return status;
  status = client_.DownloadArtifact(stem + ".report.json", out / "report.json");
  bar_.Clear();
  return status;
}

// The results are safe; what cannot be deleted now is only said.
void Run::CleanUp() {
  absl::Status status = client_.DeleteJob(job_.name);
  if (!own_statistic().empty()) status.Update(client_.DeleteStatistic(own_statistic()));
  if (!status.ok()) {
    Note(output_, absl::StrCat("quantctl: could not clean up: ", status.message()));
  }
}

// A run that ends early leaves no job behind that waits for the rest of its data. With a connection
// of its own, since an interrupt has ended the run's.
void CancelUnfinishedJob(const client::ConnectOptions& server, const std::string& job_name,
                         const std::string& own_statistic, const Output& output) {
  const std::string id = LastSegment(job_name);
  auto client = Client::Connect(server);
  const absl::StatusOr<client::Job> job =
      client.ok() ? (*client)->CancelJob(job_name) : client.status();
  if (!job.ok()) {
    Note(output,
         absl::StrCat("quantctl: job ", id, " could not be cancelled: ", job.status().message()));
    return;
  }
  if (job->state == client::JobState::kCancelled) {
    Note(output, absl::StrCat("quantctl: job ", id, " is cancelled"));
  }
  // Nobody else knows this statistic. It may not exist yet.
  if (!own_statistic.empty()) (void)(*client)->DeleteStatistic(own_statistic);
}

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path.string()));
  return text;
}

absl::Status PrintResult(const QuantizeOptions& options, const Output& output,
                         const std::string& job_name, const std::string& layer, double seconds) {
  const std::filesystem::path out = options.out;
  const absl::StatusOr<std::string> report = ReadFile(out / "report.json");
  if (!report.ok()) return report.status();
  if (output.json) {
    const nlohmann::json line = {
        {"job", LastSegment(job_name)},
        {"layer", layer},
        {"result", (out / "result.safetensors").string()},
        {"seconds", seconds},
        {"report", nlohmann::json::parse(*report, nullptr, /*allow_exceptions=*/false)}};
    std::printf("%s\n", line.dump().c_str());
  } else if (!output.quiet) {
    std::printf("%s%s in %s (job %s)\n", FormatReport(layer, *report).c_str(),
                (out / "result.safetensors").c_str(), HumanSeconds(seconds).c_str(),
                LastSegment(job_name).c_str());
  }
  return absl::OkStatus();
}

absl::Status CreateFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--out ", path, ": expected a folder that can be made: ", error.message()));
}

}  // namespace

absl::Status Quantize(const client::ConnectOptions& server, const QuantizeOptions& options,
                      const Output& output) {
  const absl::Time start = absl::Now();
  const absl::StatusOr<Inputs> inputs = OpenInputs(options);
  if (!inputs.ok()) return inputs.status();
  for (const auto* input : {&inputs->weight, inputs->activations ? &*inputs->activations : nullptr,
                            inputs->second_moment ? &*inputs->second_moment : nullptr}) {
    if (input != nullptr && !input->remark.empty()) Note(output, input->remark);
  }
  if (absl::Status status = CreateFolder(options.out); !status.ok()) return status;

  auto client = Client::Connect(server);
  if (!client.ok()) return client.status();
  Run run(**client, options, *inputs, output);
  absl::Status status;
  {
    const InterruptScope scope(**client);
    status = run.Execute();
  }
  if (!status.ok()) {
    if (!run.job_name().empty())
      CancelUnfinishedJob(server, run.job_name(), run.own_statistic(), output);
    return status;
  }
  if (!options.keep) run.CleanUp();
  return PrintResult(options, output, run.job_name(), LayerIdOf(inputs->weight.entry.name),
                     absl::ToDoubleSeconds(absl::Now() - start));
}

}  // namespace quantd::cli
