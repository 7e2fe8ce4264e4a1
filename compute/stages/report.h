#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "compute/stages/method.h"

namespace quantd::compute {

// The error report of one layer (docs/numerics.md, section 6): every figure measured on the decoded
// result. Unset is "could not be measured" and null in JSON.
struct ErrorReport {
  std::string layer;
  int64_t rows = 0;
  int64_t cols = 0;
  std::string recipe_json;

  // tr(dW M dW^T) / tr(W M W^T) with M of the whole statistic: see weight_only_measured_on.
  std::optional<double> relative_output_error_weight_only;
  std::optional<double> sqnr_db_weight_only;
  std::string weight_only_measured_on;  // "full_second_moment", "block_diagonal" or ""
  // Quantized weights and activations, on the retained sample.
  std::optional<double> relative_output_error_weight_and_activation;
  std::optional<double> sqnr_db_weight_and_activation;

  // The same two errors for plain and Hadamard-rotated RTN in the same format; gain is
  // baseline / this.
  struct Baseline {
    std::optional<double> relative_output_error_weight_only;
    std::optional<double> relative_output_error_weight_and_activation;
    std::optional<double> gain_weight_only;
    std::optional<double> gain_weight_and_activation;
  };
  Baseline baseline_identity_rtn;
  Baseline baseline_hadamard_rtn;

  // Where the moments of drift are known: E||W x - What xhat||^2 / E||W x||^2.
  std::optional<double> relative_drift_error;

  std::optional<double> predicted_loss;  // relative, FP formats (WUSH, section 3)
  double relative_weight_error = 0.0;    // ||dW||_F^2 / ||W||_F^2
  double max_abs_weight_error = 0.0;
  struct Worst {
    int64_t index = 0;
    double share = 0.0;  // of the output error
  };
  std::vector<Worst> worst_rows;    // at most 8, largest first
  std::vector<Worst> worst_blocks;  // of input columns

  Outcome outcome = Outcome::kExact;
  double damping = 0.0;
  int64_t retries = 0;
  double transform_condition_max = 1.0;
  int64_t dead_inputs = 0;     // columns with M_ii = 0
  int64_t dropped_inputs = 0;  // columns that WaterSIC sets to 0
  std::optional<int64_t> tokens;
  int64_t sample_rows = 0;

  // Rate-distortion theory (docs/numerics.md, section 9): GPTQ and WaterSIC with a full moment.
  std::optional<double> waterfilling_limit_bits;  // R_WF at the achieved distortion
  std::optional<double> waterfilling_gap_bits;    // bits_per_weight over it
  std::optional<double> cholesky_am_gm;           // of L_ii^2
  std::optional<double> gptq_predicted_gap_bits;  // 0.5 log2 of it

  std::optional<double> requested_rate_bits;  // WaterSIC
  std::optional<double> entropy_bits;         // of its codes as one distribution, a weight
  double bits_per_weight_codes = 0.0;
  double bits_per_weight_scales = 0.0;
  double bits_per_weight_transform = 0.0;
  double bits_per_weight = 0.0;
  int64_t bytes = 0;

  std::map<std::string, double> seconds;  // by stage
  std::string device;
  int64_t peak_bytes = 0;
  std::string statistic_digest;
  // Digests of second_moment_hat, cross_moment and residual_moment, by these names.
  std::map<std::string, std::string> drift_digests;
  std::map<std::string, std::string> tensor_digests;  // SHA-256 hex, by tensor name
  std::string version;
};

// The report as a JSON object with these names, unset figures null, baselines flattened as
// baseline_identity_rtn_relative_output_error_weight_only and so on.
std::string ToJson(const ErrorReport& report);

}  // namespace quantd::compute
