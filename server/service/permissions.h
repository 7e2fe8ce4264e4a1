#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/auth/authenticator.h"

namespace quantd::server {

// What a method asks of its caller.
struct Permission {
  absl::string_view method;  // "quantd.v1.Jobs/CreateJob"
  Roles any_of;              // one of them suffices
  bool changes;              // creates, changes or deletes: every call is audited
};

// Every method of quantd.v1, in the order of docs/security.md.
const std::vector<Permission>& Permissions();

// Null for a method that is not in the table.
const Permission* FindPermission(absl::string_view method);

// PERMISSION_DENIED with reason ROLE_REQUIRED unless the caller has one of the method's roles. A
// method that is not in the table is for nobody.
absl::Status CheckRole(absl::string_view method, const Caller& caller);

}  // namespace quantd::server
