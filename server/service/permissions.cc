#include "server/service/permissions.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/errors/error.h"

namespace quantd::server {

const std::vector<Permission>& Permissions() {
  constexpr Roles kSubmit = Roles().With(Role::kSubmit);
  constexpr Roles kRead = Roles().With(Role::kRead);
  constexpr Roles kEither = Roles::SubmitAndRead();
  static const std::vector<Permission> table = {
      {"quantd.v1.Jobs/CreateJob", kSubmit, true},
      {"quantd.v1.Jobs/CancelJob", kSubmit, true},
      {"quantd.v1.Jobs/DeleteJob", kSubmit, true},
      {"quantd.v1.Jobs/GetJob", kRead, false},
      {"quantd.v1.Jobs/ListJobs", kRead, false},
      {"quantd.v1.Jobs/WatchJob", kRead, false},
      {"quantd.v1.Jobs/PlanJob", kRead, false},
      {"quantd.v1.Weights/UploadWeights", kSubmit, true},
      // Whoever uploads has to learn where to go on.
      {"quantd.v1.Weights/GetUploadStatus", kEither, false},
      {"quantd.v1.Calibration/StreamActivations", kSubmit, true},
      {"quantd.v1.Calibration/SealStatistic", kSubmit, true},
      {"quantd.v1.Calibration/MergeStatistics", kSubmit, true},
      {"quantd.v1.Calibration/ImportStatistic", kSubmit, true},
      {"quantd.v1.Calibration/DeleteStatistic", kSubmit, true},
      {"quantd.v1.Calibration/GetStatistic", kRead, false},
      {"quantd.v1.Calibration/ListStatistics", kRead, false},
      {"quantd.v1.Calibration/ExportStatistic", kRead, false},
      {"quantd.v1.Results/GetErrorReport", kRead, false},
      {"quantd.v1.Results/ListArtifacts", kRead, false},
      {"quantd.v1.Results/ReadArtifact", kRead, false},
      // Stores nothing, but takes the device.
      {"quantd.v1.Quantize/QuantizeTensor", kSubmit, false},
      {"quantd.v1.Server/GetServerInfo", Roles::All(), false},
      {"quantd.v1.Server/ListTenants", Roles().With(Role::kAdmin), false},
  };
  return table;
}

const Permission* FindPermission(absl::string_view method) {
  const auto& table = Permissions();
  const auto found = std::find_if(table.begin(), table.end(),
                                  [&](const Permission& one) { return one.method == method; });
  return found == table.end() ? nullptr : &*found;
}

absl::Status CheckRole(absl::string_view method, const Caller& caller) {
  const Permission* permission = FindPermission(method);
  const Roles any_of = permission == nullptr ? Roles() : permission->any_of;
  if (caller.roles.Meets(any_of)) return absl::OkStatus();
  return Error(absl::StatusCode::kPermissionDenied, "ROLE_REQUIRED",
               absl::StrCat(method, " needs one of the roles: ", any_of.ToString(),
                            "; the credential has: ", caller.roles.ToString()));
}

}  // namespace quantd::server
