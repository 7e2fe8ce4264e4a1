#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quantd::server {

// Where a page of a list, newest first, ended: the last item's time and id.
struct PageEnd {
  int64_t time_us = 0;
  std::string id;
};

// An opaque string of URL-safe characters. `scope` names the list that is paged ("jobs/acme"): a
// token of another list, a changed or a made-up one is refused.
std::string MakePageToken(absl::string_view scope, const PageEnd& end);
// INVALID_ARGUMENT for a string that MakePageToken did not make for `scope`.
absl::StatusOr<PageEnd> ParsePageToken(absl::string_view scope, absl::string_view token);

}  // namespace quantd::server
