#include "server/service/messages.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "google/protobuf/timestamp.pb.h"
#include "nlohmann/json.hpp"
#include "server/errors/error.h"
#include "server/ingest/statistics.h"
#include "server/service/grpc_status.h"
#include "server/service/resource_name.h"

namespace quantd::server {
namespace {

// Pairs of a message's enum and the domain's; the first is what both directions agree on.
template <typename Proto, typename Domain, size_t N>
using EnumTable = std::array<std::pair<Proto, Domain>, N>;

constexpr EnumTable<v1::DType, compute::DType, 4> kDTypes = {{
    {v1::F64, compute::DType::kF64},
    {v1::F32, compute::DType::kF32},
    {v1::F16, compute::DType::kF16},
    {v1::BF16, compute::DType::kBF16},
}};
constexpr EnumTable<v1::Format, compute::Format, 9> kFormats = {{
    {v1::MXFP4, compute::Format::kMxfp4},
    {v1::NVFP4, compute::Format::kNvfp4},
    {v1::INT4, compute::Format::kInt4},
    {v1::INT8, compute::Format::kInt8},
    {v1::FP8, compute::Format::kFp8},
    {v1::ENTROPY_CODED, compute::Format::kEntropyCoded},
    {v1::GAUSSIAN_GRID, compute::Format::kGaussianGrid},
    {v1::INT2, compute::Format::kInt2},
    {v1::INT3, compute::Format::kInt3},
}};
constexpr EnumTable<v1::Transform, compute::TransformKind, 5> kTransforms = {{
    {v1::IDENTITY, compute::TransformKind::kIdentity},
    {v1::HADAMARD, compute::TransformKind::kHadamard},
    {v1::RANDOM, compute::TransformKind::kRandom},
    {v1::WUS, compute::TransformKind::kWus},
    {v1::WUSH, compute::TransformKind::kWush},
}};
constexpr EnumTable<v1::Method, compute::Method, 4> kMethods = {{
    {v1::RTN, compute::Method::kRtn},
    {v1::GPTQ, compute::Method::kGptq},
    {v1::WATERSIC, compute::Method::kWaterSic},
    {v1::HIGGS, compute::Method::kHiggs},
}};
constexpr EnumTable<v1::Solver, compute::Solver, 2> kSolvers = {{
    {v1::MARGINAL, compute::Solver::kMarginal},
    {v1::CONDITIONAL, compute::Solver::kConditional},
}};
constexpr EnumTable<v1::ScaleRule, compute::ScaleRule, 7> kScaleRules = {{
    {v1::OCP, compute::ScaleRule::kOcp},
    {v1::NOCLIP, compute::ScaleRule::kNoclip},
    {v1::ABSMAX, compute::ScaleRule::kAbsmax},
    {v1::COMPRESSED_TENSORS, compute::ScaleRule::kCompressedTensors},
    {v1::GAUSSIAN_MSE, compute::ScaleRule::kGaussianMse},
    {v1::AMAX, compute::ScaleRule::kAmax},
    {v1::MSE, compute::ScaleRule::kMse},
}};
constexpr EnumTable<v1::Granularity, compute::Granularity, 3> kGranularities = {{
    {v1::GROUP, compute::Granularity::kGroup},
    {v1::ROW, compute::Granularity::kRow},
    {v1::BLOCK_128X128, compute::Granularity::kBlock128},
}};
constexpr EnumTable<v1::BlockOrder, compute::BlockOrder, 2> kBlockOrders = {{
    {v1::ASCENDING, compute::BlockOrder::kAscending},
    {v1::DESCENDING, compute::BlockOrder::kDescending},
}};
constexpr EnumTable<v1::StatisticKind, compute::MomentKind, 4> kStatisticKinds = {{
    {v1::SECOND_MOMENT, compute::MomentKind::kSecondMoment},
    {v1::WEIGHTED, compute::MomentKind::kWeighted},
    {v1::CROSS_MOMENT, compute::MomentKind::kCross},
    {v1::RESIDUAL_MOMENT, compute::MomentKind::kResidual},
}};
constexpr EnumTable<v1::LayerState, LayerState, 6> kLayerStates = {{
    {v1::LAYER_WAITING, LayerState::kWaiting},
    {v1::LAYER_QUEUED, LayerState::kQueued},
    {v1::LAYER_RUNNING, LayerState::kRunning},
    {v1::LAYER_SUCCEEDED, LayerState::kSucceeded},
    {v1::LAYER_FAILED, LayerState::kFailed},
    {v1::LAYER_CANCELLED, LayerState::kCancelled},
}};
constexpr EnumTable<v1::Priority, Priority, 3> kPriorities = {{
    {v1::PRIORITY_LOW, Priority::kLow},
    {v1::PRIORITY_NORMAL, Priority::kNormal},
    {v1::PRIORITY_HIGH, Priority::kHigh},
}};
constexpr EnumTable<v1::JobState, JobState, 6> kJobStates = {{
    {v1::ACCEPTING, JobState::kAccepting},
    {v1::QUEUED, JobState::kQueued},
    {v1::RUNNING, JobState::kRunning},
    {v1::SUCCEEDED, JobState::kSucceeded},
    {v1::FAILED, JobState::kFailed},
    {v1::CANCELLED, JobState::kCancelled},
}};

template <typename Table, typename Domain>
auto ToEnum(const Table& table, Domain value) {
  const auto found = std::find_if(table.begin(), table.end(),
                                  [&](const auto& pair) { return pair.second == value; });
  return found == table.end() ? decltype(table[0].first){} : found->first;
}

template <typename Table, typename Proto>
auto FromEnum(const Table& table, absl::string_view field, Proto value)
    -> absl::StatusOr<decltype(table[0].second)> {
  const auto found = std::find_if(table.begin(), table.end(),
                                  [&](const auto& pair) { return pair.first == value; });
  if (found == table.end()) {
    return InvalidField(field, absl::StrCat("expected one of the values of the enum, got ",
                                            static_cast<int>(value)));
  }
  return found->second;
}

// INVALID_ARGUMENT for what is no point in time (google/protobuf/timestamp.proto).
absl::StatusOr<absl::Time> FromTimestamp(absl::string_view field,
                                         const google::protobuf::Timestamp& timestamp) {
  constexpr int64_t kFirst = -62135596800;  // 0001-01-01T00:00:00Z
  constexpr int64_t kLast = 253402300799;   // 9999-12-31T23:59:59Z
  if (timestamp.seconds() < kFirst || timestamp.seconds() > kLast || timestamp.nanos() < 0 ||
      timestamp.nanos() > 999'999'999) {
    return InvalidField(
        field, absl::StrCat("expected a time from the year 1 to 9999, got ", timestamp.seconds(),
                            " s and ", timestamp.nanos(), " ns after 1970"));
  }
  return absl::FromUnixSeconds(timestamp.seconds()) + absl::Nanoseconds(timestamp.nanos());
}

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  google::protobuf::Timestamp timestamp;
  const int64_t micros = absl::ToUnixMicros(time);
  timestamp.set_seconds(micros / 1000000);
  timestamp.set_nanos(static_cast<int32_t>(micros % 1000000) * 1000);
  return timestamp;
}

absl::StatusOr<LayerRecord> LayerFromProto(const std::string& field, const v1::Layer& message,
                                           absl::string_view tenant,
                                           const compute::Recipe& job_recipe) {
  LayerRecord layer;
  if (absl::Status s = CheckId(field + ".layer_id", message.layer_id(), 256); !s.ok()) return s;
  layer.layer_id = message.layer_id();
  layer.rows = message.rows();
  layer.cols = message.cols();
  const auto dtype = FromProto(field + ".dtype", message.dtype());
  if (!dtype.ok()) return dtype.status();
  layer.dtype = *dtype;
  if (absl::Status s = CheckText(field + ".fusion_group", message.fusion_group(), 256); !s.ok()) {
    return s;
  }
  layer.fusion_group = message.fusion_group();
  for (const auto& [name, value, id] :
       {std::tuple(".statistic", &message.statistic(), &layer.statistic_id),
        std::tuple(".second_moment_hat", &message.second_moment_hat(), &layer.second_moment_hat_id),
        std::tuple(".cross_moment", &message.cross_moment(), &layer.cross_moment_id),
        std::tuple(".residual_moment", &message.residual_moment(), &layer.residual_moment_id)}) {
    if (value->empty()) continue;
    const auto statistic = ParseStatisticName(field + name, *value, tenant);
    if (!statistic.ok()) return statistic.status();
    *id = statistic->first;
  }
  if (!message.weight_of().empty()) {
    const auto name = ParseLayerName(field + ".weight_of", message.weight_of(), tenant);
    if (!name.ok()) return name.status();
    layer.weight_of = absl::StrCat(name->first, "/", name->second);
  }
  layer.has_own_recipe = message.has_recipe();
  layer.recipe = job_recipe;
  if (message.has_recipe()) {
    const auto recipe = FromProto(field + ".recipe", message.recipe());
    if (!recipe.ok()) return recipe.status();
    layer.recipe = *recipe;
  }
  return layer;
}

// The full name of "{job_id}/{layer_id}".
std::string SourceName(absl::string_view tenant, absl::string_view weight_of) {
  const std::pair<absl::string_view, absl::string_view> source = absl::StrSplit(weight_of, '/');
  return LayerName(tenant, source.first, source.second);
}

v1::Layer LayerToProto(const JobRecord& job, const LayerRecord& layer) {
  v1::Layer message;
  message.set_name(LayerName(job.tenant, job.job_id, layer.layer_id));
  message.set_layer_id(layer.layer_id);
  message.set_rows(layer.rows);
  message.set_cols(layer.cols);
  message.set_dtype(ToProto(layer.dtype));
  message.set_fusion_group(layer.fusion_group);
  const auto name_of = [&](const std::string& id) {
    return id.empty() ? std::string() : StatisticName(job.tenant, id);
  };
  message.set_statistic(name_of(layer.statistic_id));
  message.set_second_moment_hat(name_of(layer.second_moment_hat_id));
  message.set_cross_moment(name_of(layer.cross_moment_id));
  message.set_residual_moment(name_of(layer.residual_moment_id));
  if (!layer.weight_of.empty()) message.set_weight_of(SourceName(job.tenant, layer.weight_of));
  if (layer.has_own_recipe) *message.mutable_recipe() = ToProto(layer.recipe);
  message.set_state(ToEnum(kLayerStates, layer.state));
  if (!layer.error.ok()) message.mutable_error()->ParseFromString(ToRpcStatusBytes(layer.error));
  message.set_progress(HasEnded(layer.state) ? 1.0 : 0.0);
  message.set_device_seconds(layer.device_seconds);
  return message;
}

// The fields that both headers have. Ranges are left to MomentSpec::Validate.
template <typename Header>
absl::StatusOr<compute::MomentSpec> SpecWithoutSample(const Header& header) {
  compute::MomentSpec spec;
  if (header.kind() != v1::STATISTIC_KIND_UNSPECIFIED) {
    const auto kind = FromEnum(kStatisticKinds, "header.kind", header.kind());
    if (!kind.ok()) {
      return Error(absl::StatusCode::kUnimplemented, "KIND_NOT_SUPPORTED",
                   absl::StrCat("header.kind: this server knows SECOND_MOMENT, WEIGHTED, "
                                "CROSS_MOMENT and RESIDUAL_MOMENT, got ",
                                static_cast<int>(header.kind())));
    }
    spec.kind = *kind;
  }
  if (header.layout() != v1::MOMENT_LAYOUT_UNSPECIFIED && header.layout() != v1::FULL &&
      header.layout() != v1::BLOCK_DIAGONAL) {
    return InvalidField("header.layout", absl::StrCat("expected FULL or BLOCK_DIAGONAL, got ",
                                                      static_cast<int>(header.layout())));
  }
  if (header.layout() == v1::BLOCK_DIAGONAL) {
    if (header.block_size() < 16 || header.block_size() > 256) {
      return InvalidField("header.block_size",
                          absl::StrCat("expected 16..256, got ", header.block_size()));
    }
    spec.layout = compute::MomentLayout::kBlockDiagonal;
    spec.block_size = header.block_size();
  }
  spec.cols = header.cols();
  spec.paired_cols = header.paired_cols();
  if (spec.kind == compute::MomentKind::kCross && spec.paired_cols == 0) {
    spec.paired_cols = spec.cols;
  }
  return spec;
}

}  // namespace

absl::StatusOr<compute::DType> FromProto(absl::string_view field, v1::DType dtype) {
  if (dtype == v1::DTYPE_UNSPECIFIED) {
    return InvalidField(field, "expected F64, F32, F16 or BF16, got none");
  }
  return FromEnum(kDTypes, field, dtype);
}
v1::DType ToProto(compute::DType dtype) { return ToEnum(kDTypes, dtype); }

absl::StatusOr<compute::Recipe> FromProto(absl::string_view field, const v1::Recipe& message) {
  compute::Recipe recipe;
  const auto path = [&](absl::string_view name) { return absl::StrCat(field, ".", name); };
  if (message.method() != v1::METHOD_UNSPECIFIED) {
    const auto method = FromEnum(kMethods, path("method"), message.method());
    if (!method.ok()) return method.status();
    recipe.method = *method;
  }
  if (message.format() != v1::FORMAT_UNSPECIFIED) {
    const auto format = FromEnum(kFormats, path("format"), message.format());
    if (!format.ok()) return format.status();
    recipe.format = *format;
  } else if (const auto implied = compute::ImpliedFormat(recipe.method); implied.has_value()) {
    recipe.format = *implied;
  } else {
    return InvalidField(path("format"),
                        "expected MXFP4, NVFP4, INT2, INT3, INT4, INT8 or FP8, got none");
  }
  if (message.transform() != v1::TRANSFORM_UNSPECIFIED) {
    const auto transform = FromEnum(kTransforms, path("transform"), message.transform());
    if (!transform.ok()) return transform.status();
    recipe.transform = *transform;
  }
  if (message.solver() != v1::SOLVER_UNSPECIFIED) {
    const auto solver = FromEnum(kSolvers, path("solver"), message.solver());
    if (!solver.ok()) return solver.status();
    recipe.solver = *solver;
  }
  if (message.scale_rule() != v1::SCALE_RULE_UNSPECIFIED) {
    const auto rule = FromEnum(kScaleRules, path("scale_rule"), message.scale_rule());
    if (!rule.ok()) return rule.status();
    recipe.scale_rule = *rule;
  }
  if (message.granularity() != v1::GRANULARITY_UNSPECIFIED) {
    const auto granularity = FromEnum(kGranularities, path("granularity"), message.granularity());
    if (!granularity.ok()) return granularity.status();
    recipe.granularity = *granularity;
  }
  recipe.group_size = message.group_size();
  recipe.transform_block_size = message.transform_block_size();
  if (message.has_damping()) recipe.damping = message.damping();
  recipe.seed = message.seed();
  recipe.rate_bits = message.rate_bits();
  recipe.grid_dimension = message.grid_dimension();
  recipe.skip_rate_theory = message.skip_rate_theory();
  const v1::Gptq& gptq = message.gptq();
  if (gptq.order() != v1::BLOCK_ORDER_UNSPECIFIED) {
    const auto order = FromEnum(kBlockOrders, path("gptq.order"), gptq.order());
    if (!order.ok()) return order.status();
    recipe.gptq.order = *order;
  }
  if (gptq.has_damping()) recipe.gptq.damping = gptq.damping();
  recipe.gptq.act_order = gptq.act_order();
  recipe.gptq.allow_rtn_fallback = gptq.allow_rtn_fallback();
  recipe.gptq.asymmetric = gptq.asymmetric();
  return recipe;
}

v1::Recipe ToProto(const compute::Recipe& recipe) {
  v1::Recipe message;
  message.set_format(ToEnum(kFormats, recipe.format));
  message.set_transform(ToEnum(kTransforms, recipe.transform));
  message.set_method(ToEnum(kMethods, recipe.method));
  message.set_solver(ToEnum(kSolvers, recipe.solver));
  if (recipe.scale_rule.has_value()) {
    message.set_scale_rule(ToEnum(kScaleRules, *recipe.scale_rule));
  }
  if (recipe.granularity.has_value()) {
    message.set_granularity(ToEnum(kGranularities, *recipe.granularity));
  }
  message.set_group_size(static_cast<int32_t>(recipe.group_size));
  message.set_transform_block_size(static_cast<int32_t>(recipe.transform_block_size));
  if (recipe.damping.has_value()) message.set_damping(*recipe.damping);
  message.set_seed(recipe.seed);
  message.set_rate_bits(recipe.rate_bits);
  message.set_grid_dimension(static_cast<int32_t>(recipe.grid_dimension));
  message.set_skip_rate_theory(recipe.skip_rate_theory);
  if (recipe.method == compute::Method::kGptq) {
    v1::Gptq* gptq = message.mutable_gptq();
    gptq->set_order(ToEnum(kBlockOrders, recipe.gptq.order));
    gptq->set_act_order(recipe.gptq.act_order);
    gptq->set_damping(recipe.gptq.damping);
    gptq->set_allow_rtn_fallback(recipe.gptq.allow_rtn_fallback);
    gptq->set_asymmetric(recipe.gptq.asymmetric);
  }
  return message;
}

absl::StatusOr<JobRecord> FromProto(const v1::Job& message, absl::string_view tenant) {
  JobRecord job;
  job.tenant = std::string(tenant);
  if (absl::Status s = CheckText("job.display_name", message.display_name(), 256); !s.ok()) {
    return s;
  }
  job.display_name = message.display_name();
  if (message.priority() != v1::PRIORITY_UNSPECIFIED) {
    const auto priority = FromEnum(kPriorities, "job.priority", message.priority());
    if (!priority.ok()) return priority.status();
    job.priority = *priority;
  }
  if (message.has_deadline()) {
    const auto deadline = FromTimestamp("job.deadline", message.deadline());
    if (!deadline.ok()) return deadline.status();
    job.deadline = *deadline;
  }
  const bool every_layer_has_one =
      std::all_of(message.layers().begin(), message.layers().end(),
                  [](const v1::Layer& layer) { return layer.has_recipe(); });
  if (message.has_recipe() || !every_layer_has_one) {
    const auto recipe = FromProto("job.recipe", message.recipe());
    if (!recipe.ok()) return recipe.status();
    job.recipe = *recipe;
  }
  for (int i = 0; i < message.layers_size(); ++i) {
    auto layer =
        LayerFromProto(absl::StrCat("job.layers[", i, "]"), message.layers(i), tenant, job.recipe);
    if (!layer.ok()) return layer.status();
    job.layers.push_back(std::move(*layer));
  }
  return job;
}

v1::Job ToProto(const JobRecord& job) {
  v1::Job message;
  message.set_name(JobName(job.tenant, job.job_id));
  message.set_display_name(job.display_name);
  *message.mutable_recipe() = ToProto(job.recipe);
  message.set_state(ToEnum(kJobStates, job.state));
  *message.mutable_create_time() = ToTimestamp(job.create_time);
  if (job.end_time.has_value()) *message.mutable_end_time() = ToTimestamp(*job.end_time);
  message.set_finished_layers(job.finished_layers);
  message.set_priority(ToEnum(kPriorities, job.priority));
  if (job.deadline.has_value()) *message.mutable_deadline() = ToTimestamp(*job.deadline);
  for (const LayerRecord& layer : job.layers) *message.add_layers() = LayerToProto(job, layer);
  return message;
}

void AddQueue(const QueueView& queue, v1::Job& message) {
  message.set_queue_position(queue.position);
  if (queue.eta_seconds.has_value()) message.set_eta_seconds(*queue.eta_seconds);
  if (!queue.quota_wait.has_value()) return;
  v1::QuotaWait& wait = *message.mutable_quota_wait();
  wait.set_quota(std::string(NameOf(queue.quota_wait->kind)));
  const bool is_daily = queue.quota_wait->kind == QuotaKind::kSecondsPerDay;
  if (queue.quota_wait->until < absl::InfiniteFuture()) {
    *wait.mutable_until() = ToTimestamp(queue.quota_wait->until);
    wait.set_description(
        "what is left of the tenant's device seconds of this day (UTC) is too little");
  } else {
    wait.set_description(is_daily
                             ? "a layer needs more device seconds than the tenant may use a day"
                             : "as many layers of the tenant run as may at once");
  }
}

v1::Job ToProto(const JobView& view) {
  v1::Job message = ToProto(view.job);
  // Of an ended job something may run still that has not noticed.
  if (!HasEnded(view.job.state)) AddQueue(view.queue, message);
  for (v1::Layer& layer : *message.mutable_layers()) {
    const auto progress = view.progress.find(layer.layer_id());
    if (progress == view.progress.end() || layer.state() != v1::LAYER_RUNNING) continue;
    layer.set_stage(progress->second.stage);
    layer.set_progress(progress->second.fraction);
  }
  return message;
}

v1::MomentLayout ToProto(compute::MomentLayout layout) {
  return layout == compute::MomentLayout::kFull ? v1::FULL : v1::BLOCK_DIAGONAL;
}

v1::StatisticKind ToProto(compute::MomentKind kind) { return ToEnum(kStatisticKinds, kind); }

absl::StatusOr<compute::MomentSpec> FromProto(const v1::ActivationHeader& header) {
  constexpr int kDefaultSampleRows = 512;
  absl::StatusOr<compute::MomentSpec> spec = SpecWithoutSample(header);
  if (!spec.ok()) return spec;
  spec->sample_rows = header.has_sample_rows() ? header.sample_rows() : kDefaultSampleRows;
  spec->sample_seed = header.sample_seed();
  if (absl::Status s = spec->Validate(); !s.ok()) return InvalidFieldWithin("header", s);
  return spec;
}

absl::StatusOr<compute::MomentSpec> FromProto(const v1::StatisticHeader& header) {
  absl::StatusOr<compute::MomentSpec> spec = SpecWithoutSample(header);
  if (!spec.ok()) return spec;
  spec->sample_rows = header.sample_rows();
  if (absl::Status s = spec->Validate(); !s.ok()) return InvalidFieldWithin("header", s);
  return spec;
}

v1::Statistic ToProto(const StatisticRecord& record) {
  v1::Statistic message;
  message.set_name(StatisticName(record.tenant, record.statistic_id));
  message.set_kind(ToProto(record.spec.kind));
  message.set_paired_cols(record.spec.paired_cols);
  message.set_layout(ToProto(record.spec.layout));
  message.set_block_size(static_cast<int32_t>(record.spec.block_size));
  message.set_cols(record.spec.cols);
  message.set_state(record.sealed ? v1::SEALED : v1::OPEN);
  message.set_sample_rows(static_cast<int32_t>(record.spec.sample_rows));
  message.set_sample_seed(record.spec.sample_seed);
  message.set_digest(record.digest);
  *message.mutable_create_time() = ToTimestamp(record.create_time);
  int64_t tokens = 0;
  int64_t bytes = record.moment.size;
  for (const StatisticStreamRecord& stream : record.streams) {
    v1::StatisticStream* s = message.add_streams();
    s->set_stream_id(stream.stream_id);
    s->set_durable_seq(stream.durable_seq);
    s->set_tokens(stream.tokens);
    tokens += stream.tokens;
    if (!record.sealed) bytes += stream.snapshot.size;
  }
  message.set_tokens(record.sealed ? record.tokens : tokens);
  message.set_size_bytes(bytes);
  return message;
}

v1::Artifact ToProto(const ArtifactRecord& artifact, absl::string_view tenant,
                     absl::string_view job) {
  v1::Artifact message;
  message.set_name(ArtifactName(tenant, job, artifact.artifact_id));
  message.set_layer(LayerName(tenant, job, artifact.layer_id));
  message.set_size_bytes(artifact.blob.size);
  message.set_sha256(artifact.blob.sha256);
  *message.mutable_create_time() = ToTimestamp(artifact.create_time);
  return message;
}

absl::StatusOr<MeasuredFigures> MeasuredFiguresFromJson(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto number = [&](const char* name) -> std::optional<double> {
    const auto found = json.is_object() ? json.find(name) : json.end();
    if (found == json.end() || !found->is_number()) return std::nullopt;
    return found->get<double>();
  };
  const auto bits = number("bits_per_weight");
  const auto weight_error = number("relative_weight_error");
  if (!bits.has_value() || !weight_error.has_value()) {
    return absl::DataLossError("the stored report lacks bits_per_weight or relative_weight_error");
  }
  return MeasuredFigures{*bits, number("relative_output_error_weight_only"), *weight_error};
}

v1::Plan ToProto(const JobPlan& plan, absl::string_view tenant, absl::string_view job) {
  v1::Plan message;
  for (const PlannedWeight& weight : plan.weights) {
    v1::PlannedLayer* layer = message.add_layers();
    layer->set_layer(SourceName(tenant, weight.weight_of));
    layer->set_candidate(LayerName(tenant, job, weight.candidate_id));
    layer->set_parameters(weight.parameters);
    *layer->mutable_recipe() = ToProto(weight.recipe);
    layer->set_bits_per_weight(weight.bits_per_weight);
    layer->set_error(weight.error);
    if (weight.uniform_error.has_value()) layer->set_uniform_error(*weight.uniform_error);
  }
  message.set_parameters(plan.parameters);
  message.set_bits_per_weight(plan.bits_per_weight);
  message.set_error(plan.error);
  if (plan.uniform_bits_per_weight.has_value()) {
    message.set_uniform_bits_per_weight(*plan.uniform_bits_per_weight);
  }
  if (plan.uniform_error.has_value()) message.set_uniform_error(*plan.uniform_error);
  message.set_slope(plan.slope);
  message.set_error_bound(plan.error_bound);
  message.set_least_bits_per_weight(plan.least_bits_per_weight);
  message.set_most_bits_per_weight(plan.most_bits_per_weight);
  message.set_error_figure(plan.of_outputs ? "relative_output_error_weight_only"
                                           : "relative_weight_error");
  message.set_failed_candidates(plan.failed_candidates);
  return message;
}

absl::StatusOr<v1::ErrorReport> ErrorReportFromJson(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::DataLossError("the stored report is not a JSON object");
  v1::ErrorReport report;
  const auto number = [&](const char* name) -> std::optional<double> {
    const auto found = json.find(name);
    if (found == json.end() || !found->is_number()) return std::nullopt;
    return found->get<double>();
  };
  const auto set = [&](const char* name, auto setter) {
    if (const auto value = number(name); value.has_value()) (report.*setter)(*value);
  };
  set("relative_output_error_weight_only", &v1::ErrorReport::set_relative_output_error_weight_only);
  set("relative_output_error_weight_and_activation",
      &v1::ErrorReport::set_relative_output_error_weight_and_activation);
  set("sqnr_db_weight_only", &v1::ErrorReport::set_sqnr_db_weight_only);
  set("sqnr_db_weight_and_activation", &v1::ErrorReport::set_sqnr_db_weight_and_activation);
  set("bits_per_weight", &v1::ErrorReport::set_bits_per_weight);
  if (const auto tokens = json.find("tokens"); tokens != json.end()) {
    if (tokens->is_number_integer()) report.set_tokens(tokens->get<int64_t>());
  }
  if (const auto outcome = json.find("outcome"); outcome != json.end() && outcome->is_string()) {
    report.set_outcome(outcome->get<std::string>());
  }
  if (const auto seconds = json.find("seconds"); seconds != json.end() && seconds->is_object()) {
    const auto total = seconds->find("total");
    if (total != seconds->end() && total->is_number()) {
      report.set_device_seconds(total->get<double>());
    }
  }
  report.set_report_json(text);
  return report;
}

absl::StatusOr<int> PageSize(int32_t requested) {
  constexpr int kDefault = 50;
  constexpr int kMost = 1000;
  if (requested < 0) {
    return InvalidField("page_size", absl::StrCat("expected 0 or more, got ", requested));
  }
  return requested == 0 ? kDefault : std::min<int>(requested, kMost);
}

absl::Status CheckChunkSize(int64_t size) {
  if (size <= kMaxChunkBytes) return absl::OkStatus();
  return InvalidField("chunk.data",
                      absl::StrFormat("expected at most %d bytes (limits."
                                      "max_chunk_bytes), got %d",
                                      kMaxChunkBytes, size),
                      "CHUNK_TOO_LARGE");
}

}  // namespace quantd::server
