#include "client/cli/quantize.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/substitute.h"
#include "absl/time/clock.h"
#include "client/cli/input_tensor.h"
#include "client/cli/interrupt.h"
#include "client/cli/output_folder.h"
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
  std::optional<InputTensor> token_weights;
  // A moment of drift that a file holds.
  struct Moment {
    client::StatisticKind kind;
    InputTensor matrix;
  };
  std::map<std::string, Moment> drift;  // by the name of the layer's field
};

absl::Status CheckColumns(const InputTensor& weight, const InputTensor& other) {
  if (other.cols() == weight.cols()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::Substitute("$0: tensor `$1`: expected $2 columns as the weight has, got $3", other.path,
                       other.entry.name, weight.cols(), other.cols()));
}

absl::Status OpenTokenWeights(const QuantizeOptions& options, Inputs& inputs) {
  if (options.token_weights.empty()) return absl::OkStatus();
  auto picked = PickTensor(options.token_weights, options.token_weights_tensor, "token_weights",
                           TensorRank::kAny);
  if (!picked.ok()) return picked.status();
  const int64_t tokens = inputs.activations->rows();
  const int64_t count = picked->entry.size / static_cast<int64_t>(SizeOf(picked->entry.dtype));
  if (count != tokens) {
    return absl::InvalidArgumentError(absl::Substitute(
        "$0: tensor `$1`: expected $2 weights, one for each token of the activations, got $3",
        picked->path, picked->entry.name, tokens, count));
  }
  inputs.token_weights = *std::move(picked);
  return absl::OkStatus();
}

// A moment of drift is in a file where one of that name exists, or else on the server.
bool IsFile(const std::string& given) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(given, ignored) || given.ends_with(".safetensors");
}

absl::Status OpenDrift(const QuantizeOptions& options, Inputs& inputs) {
  const auto open = [&](const std::string& given, const std::string& name,
                        client::StatisticKind kind, int64_t rows) -> absl::Status {
    if (given.empty() || !IsFile(given)) return absl::OkStatus();
    auto picked = PickTensor(given, "", name, TensorRank::kMatrix);
    if (!picked.ok()) return picked.status();
    if (absl::Status status = CheckColumns(inputs.weight, *picked); !status.ok()) return status;
    if (picked->rows() != rows) {
      return absl::InvalidArgumentError(absl::Substitute(
          "$0: tensor `$1`: expected $2 x $3, got $4 x $5", picked->path, picked->entry.name, rows,
          picked->cols(), picked->rows(), picked->cols()));
    }
    inputs.drift[name] = {kind, *std::move(picked)};
    return absl::OkStatus();
  };
  const int64_t cols = inputs.weight.cols();
  absl::Status status = open(options.second_moment_hat, "second_moment_hat",
                             client::StatisticKind::kSecondMoment, cols);
  if (status.ok()) {
    status = open(options.cross_moment, "cross_moment", client::StatisticKind::kCrossMoment, cols);
  }
  if (status.ok()) {
    status = open(options.residual_moment, "residual_moment",
                  client::StatisticKind::kResidualMoment, inputs.weight.rows());
  }
  return status;
}

absl::StatusOr<Inputs> OpenInputs(const QuantizeOptions& options) {
  Inputs inputs;
  auto weight = PickTensor(options.weights, options.tensor, "weight", TensorRank::kMatrix);
  if (!weight.ok()) return weight.status();
  inputs.weight = *std::move(weight);
  if (!options.activations.empty()) {
    auto picked = PickTensor(options.activations, options.activations_tensor, "activations",
                             TensorRank::kMatrixOrMore);
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
    auto picked = PickTensor(options.second_moment, options.second_moment_tensor, "second_moment",
                             TensorRank::kMatrix);
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
  if (absl::Status status = OpenTokenWeights(options, inputs); !status.ok()) return status;
  if (absl::Status status = OpenDrift(options, inputs); !status.ok()) return status;
  return inputs;
}

// The whole tensor, as F32.
absl::Status ReadFloats(const InputTensor& tensor, std::vector<float>& values) {
  auto source = tensor.Open();
  if (!source.ok()) return source.status();
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.entry.size));
  if (absl::Status status = (*source)->Read(0, absl::MakeSpan(bytes)); !status.ok()) return status;
  const int64_t count = tensor.entry.size / static_cast<int64_t>(SizeOf(tensor.entry.dtype));
  values.resize(static_cast<size_t>(count));
  compute::ConvertToFloat(tensor.entry.dtype, bytes.data(), count, values.data());
  return absl::OkStatus();
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
  // The statistics that this run makes for itself alone.
  std::vector<std::string> own_statistics() const {
    std::vector<std::string> own;
    if (HasData() && options_.statistic.empty()) own.push_back(statistic_);
    for (const auto& [field, moment] : inputs_.drift) own.push_back(drift_.at(field));
    return own;
  }
  void CleanUp();

 private:
  absl::Status CreateJob();
  absl::Status UploadWeights();
  absl::Status Calibrate();
  absl::Status ImportDrift();
  absl::Status Import(const InputTensor& moment, client::MomentSpec spec, const char* label);
  std::string NameOfDrift(const std::string& given, const std::string& field) const;
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
  std::string statistic_;                     // full name; empty without calibration data
  std::map<std::string, std::string> drift_;  // full names, by field; empty where not given
  client::Job job_;
};

absl::Status Run::Execute() {
  if (!options_.statistic.empty()) {
    statistic_ = client_.StatisticName(options_.statistic);
  } else if (HasData()) {
    statistic_ = client_.StatisticName(RandomName());
  }
  drift_["second_moment_hat"] = NameOfDrift(options_.second_moment_hat, "second_moment_hat");
  drift_["cross_moment"] = NameOfDrift(options_.cross_moment, "cross_moment");
  drift_["residual_moment"] = NameOfDrift(options_.residual_moment, "residual_moment");
  if (absl::Status status = CreateJob(); !status.ok()) return status;
  if (absl::Status status = UploadWeights(); !status.ok()) return status;
  if (absl::Status status = Calibrate(); !status.ok()) return status;
  if (absl::Status status = ImportDrift(); !status.ok()) return status;
  bar_.Clear();
  if (absl::Status status = Wait(); !status.ok()) return status;
  return Download();
}

std::string Run::NameOfDrift(const std::string& given, const std::string& field) const {
  if (given.empty()) return "";
  return client_.StatisticName(inputs_.drift.contains(field) ? RandomName() : given);
}

absl::Status Run::CreateJob() {
  client::JobSpec spec;
  spec.job_id = options_.job_id;
  spec.display_name = std::filesystem::path(options_.weights).filename().string().substr(0, 200);
  spec.recipe = options_.recipe;
  spec.priority = options_.priority;
  if (options_.deadline) spec.deadline = absl::Now() + *options_.deadline;
  client::Layer layer;
  layer.layer_id = LayerIdOf(inputs_.weight.entry.name);
  layer.rows = inputs_.weight.rows();
  layer.cols = inputs_.weight.cols();
  layer.dtype = inputs_.weight.entry.dtype;
  layer.statistic = statistic_;
  layer.second_moment_hat = drift_["second_moment_hat"];
  layer.cross_moment = drift_["cross_moment"];
  layer.residual_moment = drift_["residual_moment"];
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
  if (inputs_.second_moment) {
    client::MomentSpec spec;
    spec.statistic = statistic_;
    return Import(*inputs_.second_moment, spec, "sending second moment");
  }
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
  spec.shared_memory = options_.shared_memory;
  client::ActivationSources sources = {.data = source->get()};
  std::unique_ptr<client::ByteSource> weights;
  std::vector<float> values;
  if (inputs_.token_weights) {
    absl::Status read = ReadFloats(*inputs_.token_weights, values);
    if (!read.ok()) return read;
    weights = client::MemorySource(
        {reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(float)});
    spec.kind = client::StatisticKind::kWeighted;
    sources.weights = weights.get();
  }
  absl::Status status =
      client_.StreamActivations(spec, sources, ShowBytes("streaming activations"));
  if (!status.ok()) return status;
  return client_.SealStatistic(statistic_).status();
}

absl::Status Run::ImportDrift() {
  for (const auto& [field, moment] : inputs_.drift) {
    client::MomentSpec spec;
    spec.statistic = drift_[field];
    spec.kind = moment.kind;
    const bool paired = moment.kind != client::StatisticKind::kSecondMoment;
    spec.paired_cols = paired ? moment.matrix.rows() : 0;
    absl::Status status = Import(moment.matrix, spec, "sending moments of drift");
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// E[...] as F32 or F64; narrower types are widened.
absl::Status Run::Import(const InputTensor& moment, client::MomentSpec spec, const char* label) {
  auto source = moment.Open();
  if (!source.ok()) return source.status();
  spec.cols = moment.cols();
  spec.dtype = moment.entry.dtype;
  spec.tokens = options_.tokens;
  std::vector<float> widened;
  if (spec.dtype == compute::DType::kF16 || spec.dtype == compute::DType::kBF16) {
    if (absl::Status status = ReadFloats(moment, widened); !status.ok()) return status;
    spec.dtype = compute::DType::kF32;
    *source = client::MemorySource(
        {reinterpret_cast<const std::byte*>(widened.data()), widened.size() * sizeof(float)});
  }
  return client_.ImportStatistic(spec, **source, ShowBytes(label)).status();
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
  for (const std::string& name : own_statistics()) status.Update(client_.DeleteStatistic(name));
  if (!status.ok()) {
    Note(output_, absl::StrCat("quantctl: could not clean up: ", status.message()));
  }
}

// A run that ends early leaves no job behind that waits for the rest of its data. With a connection
// of its own, since an interrupt has ended the run's.
void CancelUnfinishedJob(const client::ConnectOptions& server, const std::string& job_name,
                         const std::vector<std::string>& own_statistics, const Output& output) {
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
  // Nobody else knows these statistics. They may not exist yet.
  for (const std::string& name : own_statistics) (void)(*client)->DeleteStatistic(name);
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

}  // namespace

absl::Status Quantize(const client::ConnectOptions& server, const QuantizeOptions& options,
                      const Output& output) {
  const absl::Time start = absl::Now();
  const absl::StatusOr<Inputs> inputs = OpenInputs(options);
  if (!inputs.ok()) return inputs.status();
  std::vector<const InputTensor*> tensors = {&inputs->weight};
  for (const auto* input : {&inputs->activations, &inputs->second_moment, &inputs->token_weights}) {
    if (input->has_value()) tensors.push_back(&**input);
  }
  for (const auto& [field, moment] : inputs->drift) tensors.push_back(&moment.matrix);
  for (const InputTensor* tensor : tensors) {
    if (!tensor->remark.empty()) Note(output, tensor->remark);
  }
  if (absl::Status status = CreateOutputFolder(options.out); !status.ok()) return status;

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
      CancelUnfinishedJob(server, run.job_name(), run.own_statistics(), output);
    return status;
  }
  if (!options.keep) run.CleanUp();
  return PrintResult(options, output, run.job_name(), LayerIdOf(inputs->weight.entry.name),
                     absl::ToDoubleSeconds(absl::Now() - start));
}

}  // namespace quantd::cli
