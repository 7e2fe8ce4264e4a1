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

compute::Recipe FromWire(const v1::Recipe& wire);
Layer FromWire(const v1::Layer& wire);
Job FromWire(const v1::Job& wire);
JobEstimate FromWire(const v1::JobEstimate& wire);
JobUpdate FromWire(const v1::WatchJobResponse& wire);
Plan FromWire(const v1::Plan& wire);
Statistic FromWire(const v1::Statistic& wire);
UploadStatus FromWire(const v1::UploadStatus& wire);
Artifact FromWire(const v1::Artifact& wire);
ErrorReport FromWire(const v1::ErrorReport& wire);
ServerInfo FromWire(const v1::ServerInfo& wire);
Tenant FromWire(const v1::Tenant& wire);

}  // namespace quantd::client
