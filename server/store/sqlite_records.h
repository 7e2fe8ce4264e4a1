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

// How records become rows and back. Each Read function takes a query at a row whose columns, from
// `column` on, are those that the comment names; DATA_LOSS where a value makes no sense.
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

// tenant, job_id, display_name, request_id, recipe, create_time_us, end_time_us, state,
// finished_layers, priority, deadline_us
absl::StatusOr<JobRecord> ReadJob(const Query& query, RecipeReader& recipes);
void BindOptionalTime(Query& query, const std::optional<absl::Time>& time);

// layer_id, rows, cols, dtype, fusion_group, statistic_id, recipe, has_own_recipe, state, error,
// device_seconds, upload_committed, upload_staging, weight_name, weight_size, weight_sha256,
// second_moment_hat_id, cross_moment_id, residual_moment_id, weight_of
void BindLayer(Query& query, const LayerRecord& layer, const compute::Recipe& job_recipe);
absl::StatusOr<LayerRecord> ReadLayer(const Query& query, const compute::Recipe& job_recipe,
                                      RecipeReader& recipes);

// artifact_id, layer_id, blob, create_time_us
ArtifactRecord ReadArtifact(const Query& query);

// tenant, statistic_id, layout, block_size, cols, sample_rows, sample_seed, sealed, tokens, digest,
// moment, create_time_us, kind, paired_cols
void BindStatistic(Query& query, const StatisticRecord& statistic);
absl::StatusOr<StatisticRecord> ReadStatistic(const Query& query);

// stream_id, dtype, durable_seq, tokens, snapshot, recent_crcs
void BindStream(Query& query, const StatisticStreamRecord& stream);
absl::StatusOr<StatisticStreamRecord> ReadStream(const Query& query);

}  // namespace quantd::server::sqlite
