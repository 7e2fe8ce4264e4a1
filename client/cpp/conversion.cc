#include "client/cpp/conversion.h"

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/errors.h"

namespace quantd::client {
namespace {

template <typename Enum, typename Wire>
constexpr bool Same(Enum value, Wire wire) {
  return static_cast<int>(value) == static_cast<int>(wire);
}

// The states are cast.
static_assert(Same(JobState::kAccepting, v1::ACCEPTING) && Same(JobState::kQueued, v1::QUEUED) &&
              Same(JobState::kRunning, v1::RUNNING) && Same(JobState::kSucceeded, v1::SUCCEEDED) &&
              Same(JobState::kFailed, v1::FAILED) && Same(JobState::kCancelled, v1::CANCELLED));
static_assert(Same(LayerState::kWaiting, v1::LAYER_WAITING) &&
              Same(LayerState::kQueued, v1::LAYER_QUEUED) &&
              Same(LayerState::kRunning, v1::LAYER_RUNNING) &&
              Same(LayerState::kSucceeded, v1::LAYER_SUCCEEDED) &&
              Same(LayerState::kFailed, v1::LAYER_FAILED) &&
              Same(LayerState::kCancelled, v1::LAYER_CANCELLED));
static_assert(Same(StatisticState::kOpen, v1::OPEN) && Same(StatisticState::kSealed, v1::SEALED));

// Enums of the wire begin with "unspecified" and go on in the order of compute's.
template <typename Wire, typename Enum>
constexpr Wire NextOf(Enum value) {
  return static_cast<Wire>(static_cast<int>(value) + 1);
}
template <typename Enum, typename Wire>
constexpr Enum PreviousOf(Wire value) {
  return static_cast<Enum>(value == 0 ? 0 : static_cast<int>(value) - 1);
}

static_assert(Same(NextOf<v1::Format>(compute::Format::kMxfp4), v1::MXFP4) &&
              Same(NextOf<v1::Format>(compute::Format::kInt3), v1::INT3));
static_assert(Same(NextOf<v1::Transform>(compute::TransformKind::kIdentity), v1::IDENTITY) &&
              Same(NextOf<v1::Transform>(compute::TransformKind::kWush), v1::WUSH));
static_assert(Same(NextOf<v1::Method>(compute::Method::kRtn), v1::RTN) &&
              Same(NextOf<v1::Method>(compute::Method::kHiggs), v1::HIGGS));
static_assert(Same(NextOf<v1::BlockOrder>(compute::BlockOrder::kAscending), v1::ASCENDING) &&
              Same(NextOf<v1::BlockOrder>(compute::BlockOrder::kDescending), v1::DESCENDING));
static_assert(Same(NextOf<v1::Solver>(compute::Solver::kMarginal), v1::MARGINAL) &&
              Same(NextOf<v1::Solver>(compute::Solver::kConditional), v1::CONDITIONAL));
static_assert(Same(NextOf<v1::Granularity>(compute::Granularity::kGroup), v1::GROUP) &&
              Same(NextOf<v1::Granularity>(compute::Granularity::kBlock128), v1::BLOCK_128X128));

v1::ScaleRule ToWire(compute::ScaleRule rule) {
  switch (rule) {
    case compute::ScaleRule::kAmax:
      return v1::AMAX;
    case compute::ScaleRule::kOcp:
      return v1::OCP;
    case compute::ScaleRule::kNoclip:
      return v1::NOCLIP;
    case compute::ScaleRule::kAbsmax:
      return v1::ABSMAX;
    case compute::ScaleRule::kCompressedTensors:
      return v1::COMPRESSED_TENSORS;
    case compute::ScaleRule::kGaussianMse:
      return v1::GAUSSIAN_MSE;
    case compute::ScaleRule::kMse:
      return v1::MSE;
  }
  return v1::SCALE_RULE_UNSPECIFIED;
}

std::optional<compute::ScaleRule> FromWire(v1::ScaleRule rule) {
  switch (rule) {
    case v1::AMAX:
      return compute::ScaleRule::kAmax;
    case v1::OCP:
      return compute::ScaleRule::kOcp;
    case v1::NOCLIP:
      return compute::ScaleRule::kNoclip;
    case v1::ABSMAX:
      return compute::ScaleRule::kAbsmax;
    case v1::COMPRESSED_TENSORS:
      return compute::ScaleRule::kCompressedTensors;
    case v1::GAUSSIAN_MSE:
      return compute::ScaleRule::kGaussianMse;
    case v1::MSE:
      return compute::ScaleRule::kMse;
    default:
      return std::nullopt;
  }
}

absl::Time FromWire(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

compute::DType FromWire(v1::DType dtype) {
  switch (dtype) {
    case v1::F64:
      return compute::DType::kF64;
    case v1::F16:
      return compute::DType::kF16;
    case v1::BF16:
      return compute::DType::kBF16;
    default:
      return compute::DType::kF32;
  }
}

}  // namespace

absl::StatusOr<v1::DType> ToWire(compute::DType dtype) {
  switch (dtype) {
    case compute::DType::kF64:
      return v1::F64;
    case compute::DType::kF32:
      return v1::F32;
    case compute::DType::kF16:
      return v1::F16;
    case compute::DType::kBF16:
      return v1::BF16;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("dtype: expected F64, F32, F16 or BF16, got ", compute::NameOf(dtype)));
  }
}

v1::Recipe ToWire(const compute::Recipe& recipe) {
  v1::Recipe wire;
  wire.set_format(NextOf<v1::Format>(recipe.format));
  wire.set_transform(NextOf<v1::Transform>(recipe.transform));
  wire.set_method(NextOf<v1::Method>(recipe.method));
  wire.set_solver(NextOf<v1::Solver>(recipe.solver));
  if (recipe.scale_rule) wire.set_scale_rule(ToWire(*recipe.scale_rule));
  if (recipe.granularity) wire.set_granularity(NextOf<v1::Granularity>(*recipe.granularity));
  wire.set_group_size(static_cast<int32_t>(recipe.group_size));
  wire.set_transform_block_size(static_cast<int32_t>(recipe.transform_block_size));
  if (recipe.damping) wire.set_damping(*recipe.damping);
  wire.set_seed(recipe.seed);
  wire.set_rate_bits(recipe.rate_bits);
  wire.set_grid_dimension(static_cast<int32_t>(recipe.grid_dimension));
  wire.set_skip_rate_theory(recipe.skip_rate_theory);
  if (recipe.method == compute::Method::kGptq) {
    v1::Gptq* gptq = wire.mutable_gptq();
    gptq->set_order(NextOf<v1::BlockOrder>(recipe.gptq.order));
    gptq->set_act_order(recipe.gptq.act_order);
    gptq->set_damping(recipe.gptq.damping);
    gptq->set_allow_rtn_fallback(recipe.gptq.allow_rtn_fallback);
    gptq->set_asymmetric(recipe.gptq.asymmetric);
  }
  return wire;
}

absl::StatusOr<v1::Layer> ToWire(const Layer& layer) {
  const absl::StatusOr<v1::DType> dtype = ToWire(layer.dtype);
  if (!dtype.ok()) return dtype.status();
  v1::Layer wire;
  wire.set_layer_id(layer.layer_id);
  wire.set_rows(layer.rows);
  wire.set_cols(layer.cols);
  wire.set_dtype(*dtype);
  wire.set_fusion_group(layer.fusion_group);
  wire.set_statistic(layer.statistic);
  wire.set_second_moment_hat(layer.second_moment_hat);
  wire.set_cross_moment(layer.cross_moment);
  wire.set_residual_moment(layer.residual_moment);
  if (layer.recipe) *wire.mutable_recipe() = ToWire(*layer.recipe);
  wire.set_weight_of(layer.weight_of);
  return wire;
}

compute::Recipe FromWire(const v1::Recipe& wire) {
  compute::Recipe recipe;
  recipe.format = PreviousOf<compute::Format>(wire.format());
  recipe.transform = PreviousOf<compute::TransformKind>(wire.transform());
  recipe.method = PreviousOf<compute::Method>(wire.method());
  recipe.solver = PreviousOf<compute::Solver>(wire.solver());
  recipe.scale_rule = FromWire(wire.scale_rule());
  if (wire.granularity() != v1::GRANULARITY_UNSPECIFIED) {
    recipe.granularity = PreviousOf<compute::Granularity>(wire.granularity());
  }
  recipe.group_size = wire.group_size();
  recipe.transform_block_size = wire.transform_block_size();
  if (wire.has_damping()) recipe.damping = wire.damping();
  recipe.seed = wire.seed();
  recipe.rate_bits = wire.rate_bits();
  recipe.grid_dimension = wire.grid_dimension();
  recipe.skip_rate_theory = wire.skip_rate_theory();
  if (wire.has_gptq()) {
    recipe.gptq.order = PreviousOf<compute::BlockOrder>(wire.gptq().order());
    recipe.gptq.act_order = wire.gptq().act_order();
    recipe.gptq.damping = wire.gptq().damping();
    recipe.gptq.allow_rtn_fallback = wire.gptq().allow_rtn_fallback();
    recipe.gptq.asymmetric = wire.gptq().asymmetric();
  }
  return recipe;
}

Layer FromWire(const v1::Layer& wire) {
  Layer layer;
  layer.name = wire.name();
  layer.layer_id = wire.layer_id();
  layer.rows = wire.rows();
  layer.cols = wire.cols();
  layer.dtype = FromWire(wire.dtype());
  layer.fusion_group = wire.fusion_group();
  layer.statistic = wire.statistic();
  layer.second_moment_hat = wire.second_moment_hat();
  layer.cross_moment = wire.cross_moment();
  layer.residual_moment = wire.residual_moment();
  if (wire.has_recipe()) layer.recipe = FromWire(wire.recipe());
  layer.weight_of = wire.weight_of();
  layer.state = static_cast<LayerState>(wire.state());
  if (wire.has_error()) {
    layer.error = StatusFromWire(wire.error().code(), wire.error().message(),
                                 wire.error().SerializeAsString());
  }
  layer.progress = wire.progress();
  layer.stage = wire.stage();
  layer.device_seconds = wire.device_seconds();
  return layer;
}

Job FromWire(const v1::Job& wire) {
  Job job;
  job.name = wire.name();
  job.display_name = wire.display_name();
  job.recipe = FromWire(wire.recipe());
  for (const v1::Layer& layer : wire.layers()) job.layers.push_back(FromWire(layer));
  job.state = static_cast<JobState>(wire.state());
  job.create_time = FromWire(wire.create_time());
  if (wire.has_end_time()) job.end_time = FromWire(wire.end_time());
  job.finished_layers = wire.finished_layers();
  job.priority = static_cast<Priority>(wire.priority());
  if (wire.has_deadline()) job.deadline = FromWire(wire.deadline());
  job.queue_position = wire.queue_position();
  if (wire.has_eta_seconds()) job.eta_seconds = wire.eta_seconds();
  if (wire.has_quota_wait()) {
    const v1::QuotaWait& wait = wire.quota_wait();
    job.quota_wait = QuotaWait{wait.quota(), wait.description(), std::nullopt};
    if (wait.has_until()) job.quota_wait->until = FromWire(wait.until());
  }
  return job;
}

JobEstimate FromWire(const v1::JobEstimate& wire) {
  return {wire.peak_bytes(), wire.device_seconds(), wire.output_bytes()};
}

Plan FromWire(const v1::Plan& wire) {
  Plan plan;
  for (const v1::PlannedLayer& each : wire.layers()) {
    PlannedLayer layer;
    layer.layer = each.layer();
    layer.candidate = each.candidate();
    layer.parameters = each.parameters();
    layer.recipe = FromWire(each.recipe());
    layer.bits_per_weight = each.bits_per_weight();
    layer.error = each.error();
    if (each.has_uniform_error()) layer.uniform_error = each.uniform_error();
    plan.layers.push_back(std::move(layer));
  }
  plan.parameters = wire.parameters();
  plan.bits_per_weight = wire.bits_per_weight();
  plan.error = wire.error();
  if (wire.has_uniform_bits_per_weight()) {
    plan.uniform_bits_per_weight = wire.uniform_bits_per_weight();
  }
  if (wire.has_uniform_error()) plan.uniform_error = wire.uniform_error();
  plan.slope = wire.slope();
  plan.error_bound = wire.error_bound();
  plan.least_bits_per_weight = wire.least_bits_per_weight();
  plan.most_bits_per_weight = wire.most_bits_per_weight();
  plan.error_figure = wire.error_figure();
  plan.failed_candidates = wire.failed_candidates();
  return plan;
}

JobUpdate FromWire(const v1::WatchJobResponse& wire) { return {FromWire(wire.job())}; }

Statistic FromWire(const v1::Statistic& wire) {
  Statistic statistic;
  statistic.name = wire.name();
  statistic.kind = static_cast<StatisticKind>(wire.kind());
  statistic.paired_cols = wire.paired_cols();
  statistic.layout =
      wire.layout() == v1::BLOCK_DIAGONAL ? MomentLayout::kBlockDiagonal : MomentLayout::kFull;
  statistic.block_size = wire.block_size();
  statistic.cols = wire.cols();
  statistic.tokens = wire.tokens();
  statistic.state = static_cast<StatisticState>(wire.state());
  for (const v1::StatisticStream& stream : wire.streams()) {
    statistic.streams.push_back({stream.stream_id(), stream.durable_seq(), stream.tokens()});
  }
  statistic.sample_rows = wire.sample_rows();
  statistic.digest = wire.digest();
  statistic.size_bytes = wire.size_bytes();
  statistic.create_time = FromWire(wire.create_time());
  return statistic;
}

UploadStatus FromWire(const v1::UploadStatus& wire) {
  return {wire.committed_size(), wire.size(), wire.complete()};
}

Artifact FromWire(const v1::Artifact& wire) {
  return {wire.name(), wire.layer(), wire.size_bytes(), wire.sha256(),
          FromWire(wire.create_time())};
}

ErrorReport FromWire(const v1::ErrorReport& wire) {
  ErrorReport report;
  report.layer = wire.layer();
  if (wire.has_relative_output_error_weight_only()) {
    report.relative_output_error_weight_only = wire.relative_output_error_weight_only();
  }
  if (wire.has_relative_output_error_weight_and_activation()) {
    report.relative_output_error_weight_and_activation =
        wire.relative_output_error_weight_and_activation();
  }
  if (wire.has_sqnr_db_weight_only()) report.sqnr_db_weight_only = wire.sqnr_db_weight_only();
  if (wire.has_sqnr_db_weight_and_activation()) {
    report.sqnr_db_weight_and_activation = wire.sqnr_db_weight_and_activation();
  }
  report.bits_per_weight = wire.bits_per_weight();
  if (wire.has_tokens()) report.tokens = wire.tokens();
  report.outcome = wire.outcome();
  report.device_seconds = wire.device_seconds();
  report.report_json = wire.report_json();
  return report;
}

Tenant FromWire(const v1::Tenant& wire) {
  const v1::TenantQuotas& quotas = wire.quotas();
  const v1::TenantUsage& usage = wire.usage();
  return {.name = wire.name(),
          .configured = wire.configured(),
          .quotas = {.weight = quotas.weight(),
                     .max_jobs = quotas.max_jobs(),
                     .max_statistics = quotas.max_statistics(),
                     .max_streams = quotas.max_streams(),
                     .max_calls = quotas.max_calls(),
                     .max_messages_per_second = quotas.max_messages_per_second(),
                     .max_stored_bytes = quotas.max_stored_bytes(),
                     .max_running_layers = quotas.max_running_layers(),
                     .max_device_seconds_per_day = quotas.max_device_seconds_per_day()},
          .usage = {.jobs = usage.jobs(),
                    .statistics = usage.statistics(),
                    .streams = usage.streams(),
                    .uploads = usage.uploads(),
                    .calls = usage.calls(),
                    .stored_bytes = usage.stored_bytes(),
                    .running_layers = usage.running_layers(),
                    .waiting_layers = usage.waiting_layers(),
                    .device_seconds = usage.device_seconds(),
                    .device_seconds_today = usage.device_seconds_today()}};
}

ServerInfo FromWire(const v1::ServerInfo& wire) {
  ServerInfo info;
  info.version = wire.version();
  info.tenant = wire.tenant();
  for (const v1::Device& device : wire.devices()) {
    info.devices.push_back({.name = device.name(),
                            .description = device.description(),
                            .memory_bytes = device.memory_bytes(),
                            .running_layers = device.running_layers(),
                            .uuid = device.uuid(),
                            .utilisation = device.has_utilisation()
                                               ? std::optional<double>(device.utilisation())
                                               : std::nullopt});
  }
  // A newer server may list what this client does not know yet; the name then is a number.
  for (const int format : wire.formats()) {
    info.formats.push_back(absl::AsciiStrToLower(v1::Format_Name(static_cast<v1::Format>(format))));
  }
  for (const int transform : wire.transforms()) {
    info.transforms.push_back(
        absl::AsciiStrToLower(v1::Transform_Name(static_cast<v1::Transform>(transform))));
  }
  for (const int method : wire.methods()) {
    info.methods.push_back(absl::AsciiStrToLower(v1::Method_Name(static_cast<v1::Method>(method))));
  }
  const v1::Limits& limits = wire.limits();
  info.limits = {limits.max_message_bytes(),   limits.max_chunk_bytes(),
                 limits.max_dimension(),       limits.max_layers_per_job(),
                 limits.max_jobs_per_tenant(), limits.max_streams_per_tenant(),
                 limits.stream_credit_bytes(), limits.max_inline_bytes()};
  return info;
}

}  // namespace quantd::client
