#pragma once

#include <string>

#include "absl/status/status.h"
#include "client/cli/terminal.h"
#include "client/cpp/client.h"

// Commands that look at what a server has, and cancel.
namespace quantd::cli {

absl::Status ShowInfo(client::Client& client, const Output& output);
absl::Status ShowJobs(client::Client& client, const Output& output);
absl::Status ShowStatistics(client::Client& client, const Output& output);
// Every tenant's quotas and usage; needs the role admin.
absl::Status ShowTenants(client::Client& client, const Output& output);
// Until the job has ended; its failure is this command's.
absl::Status WatchJob(client::Client& client, const std::string& job, const Output& output);
absl::Status CancelJob(client::Client& client, const std::string& job, const Output& output);
absl::Status DeleteJob(client::Client& client, const std::string& job, const Output& output);
// Reports of the layers that have succeeded, or of `layer` alone.
absl::Status ShowReports(client::Client& client, const std::string& job, const std::string& layer,
                         const Output& output);

}  // namespace quantd::cli
