#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// Names of resources, AIP-122 style: tenants/{tenant}/jobs/{job}/layers/{layer}. Ids are never
// paths: letters, digits, '.', '_' and '-', not starting with '.', so they are safe in file names
// too.
namespace quantd::server {

// INVALID_ARGUMENT for `field`, with what was expected and what came (cleaned for display).
absl::Status CheckId(absl::string_view field, absl::string_view id, size_t max_length);

// Free text that people will see: at most `max_bytes`, no control characters.
absl::Status CheckText(absl::string_view field, absl::string_view text, size_t max_bytes);

struct ResourceName {
  std::string tenant;
  std::string first;   // job or statistic
  std::string second;  // layer or artifact; empty where the pattern has none
};

// Each parses one pattern and checks that the tenant is the caller's, in that order and before
// anything is looked up: PERMISSION_DENIED for another tenant's names, whether they exist or not.
absl::Status CheckParent(absl::string_view field, absl::string_view parent,
                         absl::string_view caller);  // tenants/{tenant}
absl::StatusOr<ResourceName> ParseJobName(absl::string_view field, absl::string_view name,
                                          absl::string_view caller);
absl::StatusOr<ResourceName> ParseLayerName(absl::string_view field, absl::string_view name,
                                            absl::string_view caller);
absl::StatusOr<ResourceName> ParseArtifactName(absl::string_view field, absl::string_view name,
                                               absl::string_view caller);
absl::StatusOr<ResourceName> ParseStatisticName(absl::string_view field, absl::string_view name,
                                                absl::string_view caller);

// A POSIX shared-memory region of a client's: quantd.{tenant}.{id}, the id as CheckId's with at
// most 64 characters. Errors as above.
absl::Status CheckSharedRegionName(absl::string_view field, absl::string_view name,
                                   absl::string_view caller);

std::string JobName(absl::string_view tenant, absl::string_view job);
std::string LayerName(absl::string_view tenant, absl::string_view job, absl::string_view layer);
std::string ArtifactName(absl::string_view tenant, absl::string_view job,
                         absl::string_view artifact);

}  // namespace quantd::server
