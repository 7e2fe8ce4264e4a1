#pragma once

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "compute/backend/backend.h"
#include "compute/recipe/recipe.h"
#include "quantd/v1/calibration.pb.h"
#include "quantd/v1/jobs.pb.h"
#include "quantd/v1/results.pb.h"
#include "server/jobs/job_engine.h"
#include "server/jobs/job_plan.h"
#include "server/store/records.h"

// Messages to domain values and back. The From functions check what the message alone can tell and
// return INVALID_ARGUMENT for a field below `field`.
namespace quantd::server {

absl::StatusOr<compute::DType> FromProto(absl::string_view field, v1::DType dtype);
v1::DType ToProto(compute::DType dtype);

absl::StatusOr<compute::Recipe> FromProto(absl::string_view field, const v1::Recipe& message);
v1::Recipe ToProto(const compute::Recipe& recipe);

// The tenant, id and times are the caller's to set.
absl::StatusOr<JobRecord> FromProto(const v1::Job& message, absl::string_view tenant);
v1::Job ToProto(const JobView& view);
v1::Job ToProto(const JobRecord& job);
void AddQueue(const QueueView& queue, v1::Job& message);

v1::Statistic ToProto(const StatisticRecord& record);
// What a header says about its statistic. UNIMPLEMENTED for a kind that is not known here.
absl::StatusOr<compute::MomentSpec> FromProto(const v1::ActivationHeader& header);
absl::StatusOr<compute::MomentSpec> FromProto(const v1::StatisticHeader& header);
v1::MomentLayout ToProto(compute::MomentLayout layout);
v1::StatisticKind ToProto(compute::MomentKind kind);

v1::Artifact ToProto(const ArtifactRecord& artifact, absl::string_view tenant,
                     absl::string_view job);
// From the JSON document of a report. DATA_LOSS where it cannot be read.
absl::StatusOr<v1::ErrorReport> ErrorReportFromJson(const std::string& text);

// What a plan needs of it. DATA_LOSS as above.
absl::StatusOr<MeasuredFigures> MeasuredFiguresFromJson(const std::string& text);
// `job`: the one that was measured.
v1::Plan ToProto(const JobPlan& plan, absl::string_view tenant, absl::string_view job);

// The default where it is 0; INVALID_ARGUMENT for a negative size; capped at 1000.
absl::StatusOr<int> PageSize(int32_t requested);

// Bytes of the largest message that is taken; what stock clients take and send by default.
inline constexpr int64_t kMaxMessageBytes = int64_t{4} << 20;
// Bytes of a chunk's data that surely fit a message.
inline constexpr int64_t kMaxChunkBytes = kMaxMessageBytes - (int64_t{64} << 10);
// INVALID_ARGUMENT for a chunk whose data takes more than kMaxChunkBytes.
absl::Status CheckChunkSize(int64_t size);

}  // namespace quantd::server
