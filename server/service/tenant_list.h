#pragma once

#include "absl/status/statusor.h"
#include "quantd/v1/server.pb.h"
#include "server/config/config.h"
#include "server/ingest/statistics.h"
#include "server/ingest/weight_uploads.h"
#include "server/jobs/job_engine.h"
#include "server/service/access.h"
#include "server/store/blob_store.h"
#include "server/store/job_store.h"

namespace quantd::server {

// Where a tenant's quotas and usage are known. All of it outlives the list.
struct TenantSources {
  Access& access;
  const LimitsConfig& limits;
  JobStore& jobs;
  BlobStore& blobs;
  Statistics& statistics;
  WeightUploads& uploads;
  JobEngine& engine;
};

// Every configured tenant and every one that has something stored, by name.
absl::StatusOr<v1::ListTenantsResponse> ListTenants(const TenantSources& sources);

}  // namespace quantd::server
