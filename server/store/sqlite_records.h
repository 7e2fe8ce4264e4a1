#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/store/records.h"
#include "server/store/sqlite.h"

// How records become rows and back. Each Read function takes a query at a row of the columns above
// it, in their order; DATA_LOSS where a value makes no sense.
namespace quantd::server::sqlite {

absl::string_view NameOf(LayerState state);
absl::string_view NameOf(JobState state);
absl::string_view NameOf(Priority priority);

// code, message and payloads as JSON; empty for OK.
std::string ErrorToJson(const absl::Status& error);
absl::Status ErrorFromJson(absl::string_view text, absl::Status& error);

// Recipes are few and layers many: each text is parsed once.
class RecipeReader {
 public:
  absl::StatusOr<compute::Recipe> Read(const std::string& json);

 private:
  std::map<std::string, compute::Recipe> known_;
};

// name, size, sha256
void BindBlobRef(Query& query, const BlobRef& blob);
BlobRef ReadBlobRef(const Query& query, int column);

inline constexpr absl::string_view kJobColumns =
    "tenant, job_id, display_name, request_id, recipe, create_time_us, end_time_us, state, "
    "finished_layers, priority, deadline_us";
absl::StatusOr<JobRecord> ReadJob(const Query& query, RecipeReader& recipes);
void BindOptionalTime(Query& query, const std::optional<absl::Time>& time);

inline constexpr absl::string_view kLayerColumns =
    "layer_id, rows, cols, dtype, fusion_group, statistic_id, recipe, has_own_recipe, state, "
    "error, device_seconds, upload_committed, upload_staging, weight_name, weight_size, "
    "weight_sha256, second_moment_hat_id, cross_moment_id, residual_moment_id, weight_of";
void BindLayer(Query& query, const LayerRecord& layer, const compute::Recipe& job_recipe);
absl::StatusOr<LayerRecord> ReadLayer(const Query& query, const compute::Recipe& job_recipe,
                                      RecipeReader& recipes);

inline constexpr absl::string_view kArtifactColumns =
    "artifact_id, layer_id, blob_name, blob_size, blob_sha256, create_time_us";
ArtifactRecord ReadArtifact(const Query& query);

inline constexpr absl::string_view kStatisticColumns =
    "tenant, statistic_id, layout, block_size, cols, sample_rows, sample_seed, sealed, "
    "tokens, digest, moment_name, moment_size, moment_sha256, create_time_us, kind, "
    "paired_cols";
void BindStatistic(Query& query, const StatisticRecord& statistic);
absl::StatusOr<StatisticRecord> ReadStatistic(const Query& query);

inline constexpr absl::string_view kStreamColumns =
    "stream_id, dtype, durable_seq, tokens, snapshot_name, snapshot_size, snapshot_sha256, "
    "recent_crcs";
void BindStream(Query& query, const StatisticStreamRecord& stream);
absl::StatusOr<StatisticStreamRecord> ReadStream(const Query& query);

}  // namespace quantd::server::sqlite
