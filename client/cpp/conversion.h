#pragma once

// Internal to client/cpp: between the values of resources.h and the messages of quantd.v1.

#include "absl/status/statusor.h"
#include "client/cpp/resources.h"
#include "quantd/v1/calibration.pb.h"
#include "quantd/v1/jobs.pb.h"
#include "quantd/v1/recipe.pb.h"
#include "quantd/v1/results.pb.h"
#include "quantd/v1/server.pb.h"
#include "quantd/v1/weights.pb.h"

namespace quantd::client {

// INVALID_ARGUMENT for a dtype that is no float.
absl::StatusOr<v1::DType> ToWire(compute::DType dtype);
v1::Recipe ToWire(const compute::Recipe& recipe);
absl::StatusOr<v1::Layer> ToWire(const Layer& layer);

compute::Recipe FromWire(const v1::Recipe& recipe);
Layer FromWire(const v1::Layer& layer);
Job FromWire(const v1::Job& job);
JobEstimate FromWire(const v1::JobEstimate& estimate);
JobUpdate FromWire(const v1::WatchJobResponse& response);
Statistic FromWire(const v1::Statistic& statistic);
UploadStatus FromWire(const v1::UploadStatus& status);
Artifact FromWire(const v1::Artifact& artifact);
ErrorReport FromWire(const v1::ErrorReport& report);
ServerInfo FromWire(const v1::ServerInfo& info);

}  // namespace quantd::client
