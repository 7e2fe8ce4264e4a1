#include "server/store/sqlite_records.h"

#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace quantd::server::sqlite {
namespace {

using Json = nlohmann::json;

// In the order of the enumerations. The names are stored: never change one.
constexpr std::array<absl::string_view, 6> kLayerStates = {"waiting",   "queued", "running",
                                                           "succeeded", "failed", "cancelled"};
constexpr std::array<absl::string_view, 6> kJobStates = {"accepting", "queued", "running",
                                                         "succeeded", "failed", "cancelled"};
constexpr std::array<absl::string_view, 3> kPriorities = {"low", "normal", "high"};
constexpr std::array<absl::string_view, 2> kLayouts = {"full", "block_diagonal"};

constexpr std::array<absl::string_view, 4> kMomentKinds = {"second_moment", "weighted",
                                                           "cross_moment", "residual_moment"};

template <typename Enum, size_t N>
absl::StatusOr<Enum> ParseName(const std::array<absl::string_view, N>& names,
                               absl::string_view name, absl::string_view what) {
  for (size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
  }
  return absl::DataLossError(absl::StrCat("unknown ", what, " '", name, "'"));
}

absl::Status AsDataLoss(const absl::Status& status, absl::string_view what) {
  return absl::DataLossError(absl::StrCat(what, ": ", status.message()));
}

// Little-endian, as the machines are that this runs on.
std::string PackCrcs(const std::vector<uint32_t>& crcs) {
  std::string bytes(crcs.size() * sizeof(uint32_t), '\0');
  if (!crcs.empty()) std::memcpy(bytes.data(), crcs.data(), bytes.size());
  return bytes;
}

absl::StatusOr<std::vector<uint32_t>> UnpackCrcs(const std::string& bytes) {
  if (bytes.size() % sizeof(uint32_t) != 0) {
    return absl::DataLossError(absl::StrCat("recent_crcs: ", bytes.size(), " bytes"));
  }
  std::vector<uint32_t> crcs(bytes.size() / sizeof(uint32_t));
  if (!crcs.empty()) std::memcpy(crcs.data(), bytes.data(), bytes.size());
  return crcs;
}

}  // namespace

absl::string_view NameOf(LayerState state) { return kLayerStates[static_cast<size_t>(state)]; }
absl::string_view NameOf(JobState state) { return kJobStates[static_cast<size_t>(state)]; }
absl::string_view NameOf(Priority priority) { return kPriorities[static_cast<size_t>(priority)]; }

std::string ErrorToJson(const absl::Status& error) {
  if (error.ok()) return "";
  Json json = {{"code", static_cast<int>(error.code())}, {"message", std::string(error.message())}};
  error.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    json["details"][std::string(url)] = absl::Base64Escape(std::string(payload));
  });
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::Status ErrorFromJson(absl::string_view text, absl::Status& error) {
  error = absl::OkStatus();
  if (text.empty()) return absl::OkStatus();
  absl::Status unreadable = absl::DataLossError("error: not the JSON of a status");
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("code") || !json["code"].is_number_integer() ||
      !json.contains("message") || !json["message"].is_string()) {
    return unreadable;
  }
  error = absl::Status(static_cast<absl::StatusCode>(json["code"].get<int>()),
                       json["message"].get_ref<const std::string&>());
  if (error.ok()) return unreadable;
  if (json.contains("details")) {
    for (const auto& [url, payload] : json["details"].items()) {
      std::string bytes;
      if (!payload.is_string() ||
          !absl::Base64Unescape(payload.get_ref<const std::string&>(), &bytes)) {
        return unreadable;
      }
      error.SetPayload(url, absl::Cord(bytes));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<compute::Recipe> RecipeReader::Read(const std::string& json) {
  if (auto known = known_.find(json); known != known_.end()) return known->second;
  auto recipe = compute::RecipeFromJson(json);
  if (!recipe.ok()) return AsDataLoss(recipe.status(), "recipe");
  known_.emplace(json, *recipe);
  return *recipe;
}

void BindBlobRef(Query& query, const BlobRef& blob) {
  query.BindOrNull(blob.name).Bind(blob.size).BindBlob(blob.sha256);
}

BlobRef ReadBlobRef(const Query& query, int column) {
  return {
      .name = query.Text(column), .size = query.Int(column + 1), .sha256 = query.Text(column + 2)};
}

void BindOptionalTime(Query& query, const std::optional<absl::Time>& time) {
  time ? query.Bind(absl::ToUnixMicros(*time)) : query.BindNull();
}

absl::StatusOr<JobRecord> ReadJob(const Query& query, RecipeReader& recipes) {
  JobRecord job;
  job.tenant = query.Text(0);
  job.job_id = query.Text(1);
  job.display_name = query.Text(2);
  job.request_id = query.Text(3);
  const std::string where = absl::StrCat("record of job ", job.tenant, "/", job.job_id);
  auto recipe = recipes.Read(query.Text(4));
  if (!recipe.ok()) return AsDataLoss(recipe.status(), where);
  job.recipe = *recipe;
  job.create_time = absl::FromUnixMicros(query.Int(5));
  if (!query.IsNull(6)) job.end_time = absl::FromUnixMicros(query.Int(6));
  auto state = ParseName<JobState>(kJobStates, query.Text(7), "state");
  if (!state.ok()) return AsDataLoss(state.status(), where);
  job.state = *state;
  job.finished_layers = static_cast<int>(query.Int(8));
  auto priority = ParseName<Priority>(kPriorities, query.Text(9), "priority");
  if (!priority.ok()) return AsDataLoss(priority.status(), where);
  job.priority = *priority;
  if (!query.IsNull(10)) job.deadline = absl::FromUnixMicros(query.Int(10));
  return job;
}

void BindLayer(Query& query, const LayerRecord& layer, const compute::Recipe& job_recipe) {
  query.Bind(layer.layer_id)
      .Bind(layer.rows)
      .Bind(layer.cols)
      .Bind(compute::NameOf(layer.dtype))
      .Bind(layer.fusion_group)
      .BindOrNull(layer.statistic_id);
  layer.recipe == job_recipe ? query.BindNull() : query.Bind(compute::ToJson(layer.recipe));
  query.Bind(int64_t{layer.has_own_recipe})
      .Bind(NameOf(layer.state))
      .BindOrNull(ErrorToJson(layer.error))
      .Bind(layer.device_seconds)
      .Bind(layer.upload_committed)
      .BindOrNull(layer.upload_staging);
  BindBlobRef(query, layer.weight);
  query.BindOrNull(layer.second_moment_hat_id)
      .BindOrNull(layer.cross_moment_id)
      .BindOrNull(layer.residual_moment_id)
      .BindOrNull(layer.weight_of);
}

absl::StatusOr<LayerRecord> ReadLayer(const Query& query, const compute::Recipe& job_recipe,
                                      RecipeReader& recipes) {
  LayerRecord layer;
  layer.layer_id = query.Text(0);
  layer.rows = query.Int(1);
  layer.cols = query.Int(2);
  const std::string where = absl::StrCat("record of layer ", layer.layer_id);
  const auto dtype = compute::ParseDType(query.Text(3));
  if (!dtype.ok()) return AsDataLoss(dtype.status(), where);
  layer.dtype = *dtype;
  layer.fusion_group = query.Text(4);
  layer.statistic_id = query.Text(5);
  layer.recipe = job_recipe;
  if (!query.IsNull(6)) {
    auto recipe = recipes.Read(query.Text(6));
    if (!recipe.ok()) return AsDataLoss(recipe.status(), where);
    layer.recipe = *recipe;
  }
  layer.has_own_recipe = query.Int(7) != 0;
  const auto state = ParseName<LayerState>(kLayerStates, query.Text(8), "state");
  if (!state.ok()) return AsDataLoss(state.status(), where);
  layer.state = *state;
  if (auto s = ErrorFromJson(query.Text(9), layer.error); !s.ok()) return AsDataLoss(s, where);
  layer.device_seconds = query.Double(10);
  layer.upload_committed = query.Int(11);
  layer.upload_staging = query.Text(12);
  layer.weight = ReadBlobRef(query, 13);
  layer.second_moment_hat_id = query.Text(16);
  layer.cross_moment_id = query.Text(17);
  layer.residual_moment_id = query.Text(18);
  layer.weight_of = query.Text(19);
  return layer;
}

ArtifactRecord ReadArtifact(const Query& query) {
  return {.artifact_id = query.Text(0),
          .layer_id = query.Text(1),
          .blob = ReadBlobRef(query, 2),
          .create_time = absl::FromUnixMicros(query.Int(5))};
}

void BindStatistic(Query& query, const StatisticRecord& statistic) {
  const compute::MomentSpec& spec = statistic.spec;
  query.Bind(statistic.tenant)
      .Bind(statistic.statistic_id)
      .Bind(kLayouts[static_cast<size_t>(spec.layout)])
      .Bind(spec.block_size)
      .Bind(spec.cols)
      .Bind(spec.sample_rows)
      .Bind(static_cast<int64_t>(spec.sample_seed))  // the bits; SQLite has no unsigned
      .Bind(int64_t{statistic.sealed})
      .Bind(statistic.tokens)
      .Bind(statistic.digest);
  BindBlobRef(query, statistic.moment);
  query.Bind(absl::ToUnixMicros(statistic.create_time))
      .Bind(kMomentKinds[static_cast<size_t>(spec.kind)])
      .Bind(spec.paired_cols);
}

absl::StatusOr<StatisticRecord> ReadStatistic(const Query& query) {
  StatisticRecord statistic;
  statistic.tenant = query.Text(0);
  statistic.statistic_id = query.Text(1);
  const std::string where =
      absl::StrCat("record of statistic ", statistic.tenant, "/", statistic.statistic_id);
  const auto layout = ParseName<compute::MomentLayout>(kLayouts, query.Text(2), "layout");
  if (!layout.ok()) return AsDataLoss(layout.status(), where);
  const auto kind = ParseName<compute::MomentKind>(kMomentKinds, query.Text(14), "kind");
  if (!kind.ok()) return AsDataLoss(kind.status(), where);
  statistic.spec.kind = *kind;
  statistic.spec.paired_cols = query.Int(15);
  statistic.spec.layout = *layout;
  statistic.spec.block_size = query.Int(3);
  statistic.spec.cols = query.Int(4);
  statistic.spec.sample_rows = query.Int(5);
  statistic.spec.sample_seed = static_cast<uint64_t>(query.Int(6));
  statistic.sealed = query.Int(7) != 0;
  statistic.tokens = query.Int(8);
  statistic.digest = query.Text(9);
  statistic.moment = ReadBlobRef(query, 10);
  statistic.create_time = absl::FromUnixMicros(query.Int(13));
  return statistic;
}

void BindStream(Query& query, const StatisticStreamRecord& stream) {
  query.Bind(stream.stream_id)
      .Bind(compute::NameOf(stream.dtype))
      .Bind(stream.durable_seq)
      .Bind(stream.tokens);
  BindBlobRef(query, stream.snapshot);
  query.BindBlob(PackCrcs(stream.recent_crcs));
}

absl::StatusOr<StatisticStreamRecord> ReadStream(const Query& query) {
  StatisticStreamRecord stream;
  stream.stream_id = query.Text(0);
  const std::string where = absl::StrCat("record of stream ", stream.stream_id);
  const auto dtype = compute::ParseDType(query.Text(1));
  if (!dtype.ok()) return AsDataLoss(dtype.status(), where);
  stream.dtype = *dtype;
  stream.durable_seq = query.Int(2);
  stream.tokens = query.Int(3);
  stream.snapshot = ReadBlobRef(query, 4);
  auto crcs = UnpackCrcs(query.Text(7));
  if (!crcs.ok()) return AsDataLoss(crcs.status(), where);
  stream.recent_crcs = *std::move(crcs);
  return stream;
}

}  // namespace quantd::server::sqlite
