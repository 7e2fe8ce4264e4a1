#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/cli/terminal.h"
#include "client/cpp/client.h"
#include "compute/recipe/recipe.h"

namespace quantd::cli {

struct QuantizeOptions {
  std::string weights;
  std::string tensor;  // empty: "weight", or the only one
  std::string activations;
  std::string activations_tensor;
  std::string second_moment;
  std::string second_moment_tensor;
  std::string token_weights;  // of the activations
  std::string token_weights_tensor;
  int64_t tokens = 1;  // of the moments that come from files
  // Moments of drift: files, or statistics of the server.
  std::string second_moment_hat;
  std::string cross_moment;
  std::string residual_moment;
  std::string statistic;  // on the server: to be used, or the name of the one to be made
  bool block_diagonal = false;
  std::optional<int64_t> sample_rows;
  uint64_t sample_seed = 0;
  bool shared_memory = false;  // for the activations
  compute::Recipe recipe;
  std::string out;
  std::string job_id;
  client::Priority priority = client::Priority::kNormal;
  std::optional<absl::Duration> deadline;  // from the job's creation
  bool keep = true;                        // the job and the statistic, once the results are saved
};

// One layer, whole round trip: creates a job, uploads, streams or imports the calibration data,
// waits, and saves OUT/result.safetensors and OUT/report.json. An interrupt cancels the job.
absl::Status Quantize(const client::ConnectOptions& server, const QuantizeOptions& options,
                      const Output& output);

}  // namespace quantd::cli
