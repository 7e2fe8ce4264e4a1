#pragma once

#include <string>

#include "absl/status/status.h"
#include "client/cli/terminal.h"
#include "client/cpp/candidates.h"
#include "client/cpp/client.h"

namespace quantd::cli {

struct PlanOptions {
  std::string job;  // whose weights are planned for
  double bits = 0;  // a weight, on average
  client::CandidateOptions candidates;
  bool commit = false;
  std::string out;    // with commit
  bool keep = false;  // the job that measured the candidates
};

// Measures candidates for every weight of a job, prints which gets what and what that buys against
// a uniform choice. With `commit`, quantizes as planned and saves OUT/{layer}.safetensors,
// OUT/{layer}.report.json and OUT/plan.json, which holds what was predicted and what was measured.
// An interrupt cancels what runs.
absl::Status Plan(const client::ConnectOptions& server, const PlanOptions& options,
                  const Output& output);

}  // namespace quantd::cli
