#include "server/service/resource_name.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

constexpr size_t kMaxId = 256;
constexpr size_t kMaxArtifactId = kMaxId + 16;  // a layer's id and a suffix
constexpr absl::string_view kInvalidName = "INVALID_NAME";

// What came, fit to be shown: printable ASCII, not longer than a line.
std::string Shown(absl::string_view text) {
  constexpr size_t kMost = 80;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMost)),
                      text.size() > kMost ? "\"..." : "\"");
}

absl::Status CheckTenant(absl::string_view field, absl::string_view tenant,
                         absl::string_view caller) {
  if (tenant == caller) return absl::OkStatus();
  return Error(absl::StatusCode::kPermissionDenied, "FOREIGN_TENANT",
               absl::StrFormat("%s: the caller is tenant %s and has no access to tenant %s", field,
                               caller, tenant));
}

// `collections`: "jobs", "layers". The pattern is tenants/{tenant} and then a pair each.
absl::StatusOr<ResourceName> Parse(absl::string_view field, absl::string_view name,
                                   absl::string_view caller,
                                   const std::vector<absl::string_view>& collections) {
  std::string pattern = "tenants/{tenant}";
  for (absl::string_view c : collections) {
    absl::StrAppend(&pattern, "/", c, "/{", c.substr(0, c.size() - 1), "}");
  }
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  const auto malformed = [&] {
    return InvalidField(field, absl::StrCat("expected ", pattern, ", got ", Shown(name)),
                        kInvalidName);
  };
  if (parts.size() != 2 + 2 * collections.size() || parts[0] != "tenants") return malformed();
  for (size_t i = 0; i < collections.size(); ++i) {
    if (parts[2 + 2 * i] != collections[i]) return malformed();
  }
  ResourceName parsed;
  parsed.tenant = std::string(parts[1]);
  if (absl::Status s = CheckId(field, parsed.tenant, 63); !s.ok()) return s;
  if (absl::Status s = CheckTenant(field, parsed.tenant, caller); !s.ok()) return s;
  for (size_t i = 0; i < collections.size(); ++i) {
    const size_t most = collections[i] == "artifacts" ? kMaxArtifactId : kMaxId;
    if (absl::Status s = CheckId(field, parts[3 + 2 * i], most); !s.ok()) return s;
    (i == 0 ? parsed.first : parsed.second) = std::string(parts[3 + 2 * i]);
  }
  return parsed;
}

}  // namespace

absl::Status CheckId(absl::string_view field, absl::string_view id, size_t max_length) {
  const bool well_formed = !id.empty() && id.size() <= max_length && id.front() != '.' &&
                           std::all_of(id.begin(), id.end(), [](char c) {
                             return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                                    c == '.' || c == '_' || c == '-';
                           });
  if (well_formed) return absl::OkStatus();
  return InvalidField(field,
                      absl::StrFormat("expected an id of 1..%d letters, digits, '.', '_' or '-', "
                                      "not starting with '.', got %s (%d bytes)",
                                      max_length, Shown(id), id.size()),
                      kInvalidName);
}

absl::Status CheckParent(absl::string_view field, absl::string_view parent,
                         absl::string_view caller) {
  return Parse(field, parent, caller, {}).status();
}

absl::StatusOr<ResourceName> ParseJobName(absl::string_view field, absl::string_view name,
                                          absl::string_view caller) {
  return Parse(field, name, caller, {"jobs"});
}
absl::StatusOr<ResourceName> ParseLayerName(absl::string_view field, absl::string_view name,
                                            absl::string_view caller) {
  return Parse(field, name, caller, {"jobs", "layers"});
}
absl::StatusOr<ResourceName> ParseArtifactName(absl::string_view field, absl::string_view name,
                                               absl::string_view caller) {
  return Parse(field, name, caller, {"jobs", "artifacts"});
}
absl::StatusOr<ResourceName> ParseStatisticName(absl::string_view field, absl::string_view name,
                                                absl::string_view caller) {
  return Parse(field, name, caller, {"statistics"});
}

absl::Status CheckSharedRegionName(absl::string_view field, absl::string_view name,
                                   absl::string_view caller) {
  // Neither "quantd" nor a tenant has a dot; an id may.
  const std::vector<absl::string_view> parts = absl::StrSplit(name, absl::MaxSplits('.', 2));
  if (parts.size() != 3 || parts[0] != "quantd") {
    return InvalidField(field, absl::StrCat("expected quantd.{tenant}.{id}, got ", Shown(name)),
                        kInvalidName);
  }
  if (absl::Status s = CheckId(field, parts[1], 63); !s.ok()) return s;
  if (absl::Status s = CheckTenant(field, parts[1], caller); !s.ok()) return s;
  return CheckId(field, parts[2], 64);
}

absl::Status CheckText(absl::string_view field, absl::string_view text, size_t max_bytes) {
  if (text.size() > max_bytes) {
    return InvalidField(
        field, absl::StrFormat("expected at most %d bytes, got %d", max_bytes, text.size()));
  }
  const bool printable = std::none_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_iscntrl(static_cast<unsigned char>(c));
  });
  if (printable) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("expected no control characters, got ", Shown(text)));
}

std::string JobName(absl::string_view tenant, absl::string_view job) {
  return absl::StrCat("tenants/", tenant, "/jobs/", job);
}
std::string LayerName(absl::string_view tenant, absl::string_view job, absl::string_view layer) {
  return absl::StrCat(JobName(tenant, job), "/layers/", layer);
}
std::string ArtifactName(absl::string_view tenant, absl::string_view job,
                         absl::string_view artifact) {
  return absl::StrCat(JobName(tenant, job), "/artifacts/", artifact);
}

}  // namespace quantd::server
