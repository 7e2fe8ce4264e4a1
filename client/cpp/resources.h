#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "compute/recipe/recipe.h"
#include "compute/tensor/dtype.h"

// What the server keeps, as plain values. Fields mean what the fields of the same names mean in
// proto/quantd/v1.
namespace quantd::client {

enum class JobState {
  kUnspecified,
  kAccepting,
  kQueued,
  kRunning,
  kSucceeded,
  kFailed,
  kCancelled
};
enum class Priority { kUnspecified, kLow, kNormal, kHigh };
enum class LayerState {
  kUnspecified,
  kWaiting,
  kQueued,
  kRunning,
  kSucceeded,
  kFailed,
  kCancelled
};
enum class StatisticState { kUnspecified, kOpen, kSealed };
enum class MomentLayout { kFull, kBlockDiagonal };
enum class StatisticKind { kUnspecified, kSecondMoment, kWeighted, kCrossMoment, kResidualMoment };

absl::string_view NameOf(JobState state);  // "running"
absl::string_view NameOf(LayerState state);
absl::string_view NameOf(Priority priority);  // "high"
absl::StatusOr<Priority> ParsePriority(absl::string_view name);
absl::string_view NameOf(StatisticState state);
absl::string_view NameOf(StatisticKind kind);  // "second_moment"
bool HasEnded(JobState state);
bool HasEnded(LayerState state);

// One weight matrix: the first part is what a client asks for, the second what the server tells.
struct Layer {
  std::string layer_id;
  int64_t rows = 0;
  int64_t cols = 0;
  compute::DType dtype = compute::DType::kF32;  // a float dtype
  std::string fusion_group;
  // Names of statistics, or empty.
  std::string statistic;
  std::string second_moment_hat;
  std::string cross_moment;
  std::string residual_moment;
  std::optional<compute::Recipe> recipe;
  std::string weight_of;  // full name of the layer whose weight it takes, or empty

  std::string name;
  LayerState state = LayerState::kUnspecified;
  absl::Status error;
  double progress = 0.0;
  std::string stage;
  double device_seconds = 0.0;
};

// Why ready layers of a job wait although devices may be free.
struct QuotaWait {
  std::string quota;  // the tenant's limit that is used up
  std::string description;
  std::optional<absl::Time> until;  // when it starts anew
};

struct Job {
  std::string display_name;
  compute::Recipe recipe;
  std::vector<Layer> layers;  // empty in lists

  std::string name;
  JobState state = JobState::kUnspecified;
  absl::Time create_time;
  std::optional<absl::Time> end_time;
  int64_t finished_layers = 0;
  Priority priority = Priority::kUnspecified;
  std::optional<absl::Time> deadline;
  // While it has not ended.
  int64_t queue_position = 0;  // 0: nothing waits
  std::optional<double> eta_seconds;
  std::optional<QuotaWait> quota_wait;
};

struct JobEstimate {
  int64_t peak_bytes = 0;
  double device_seconds = 0.0;
  int64_t output_bytes = 0;
};

struct JobUpdate {
  Job job;
};

struct PlannedLayer {
  std::string layer;      // full name: whose weight it is
  std::string candidate;  // full name of the measured layer
  int64_t parameters = 0;
  compute::Recipe recipe;
  double bits_per_weight = 0.0;
  double error = 0.0;
  std::optional<double> uniform_error = std::nullopt;
};

struct Plan {
  std::vector<PlannedLayer> layers;
  int64_t parameters = 0;
  double bits_per_weight = 0.0;
  double error = 0.0;
  std::optional<double> uniform_bits_per_weight;
  std::optional<double> uniform_error;
  double slope = 0.0;
  double error_bound = 0.0;
  double least_bits_per_weight = 0.0;
  double most_bits_per_weight = 0.0;
  std::string error_figure;  // of the reports
  int64_t failed_candidates = 0;
};

struct Statistic {
  struct Stream {
    std::string stream_id;
    int64_t durable_seq = 0;
    int64_t tokens = 0;
  };
  std::string name;
  StatisticKind kind = StatisticKind::kUnspecified;
  MomentLayout layout = MomentLayout::kFull;
  int64_t block_size = 0;
  int64_t cols = 0;
  int64_t paired_cols = 0;
  int64_t tokens = 0;
  StatisticState state = StatisticState::kUnspecified;
  std::vector<Stream> streams;
  int64_t sample_rows = 0;
  std::string digest;
  int64_t size_bytes = 0;
  absl::Time create_time;
};

struct UploadStatus {
  int64_t committed_size = 0;
  int64_t size = 0;
  bool complete = false;
};

struct Artifact {
  std::string name;
  std::string layer;
  int64_t size_bytes = 0;
  std::string sha256;  // 32 bytes
  absl::Time create_time;
};

struct ErrorReport {
  std::string layer;
  std::optional<double> relative_output_error_weight_only;
  std::optional<double> relative_output_error_weight_and_activation;
  std::optional<double> sqnr_db_weight_only;
  std::optional<double> sqnr_db_weight_and_activation;
  double bits_per_weight = 0.0;
  std::optional<int64_t> tokens;
  std::string outcome;
  double device_seconds = 0.0;
  std::string report_json;
};

struct ServerInfo {
  struct Device {
    std::string name;
    std::string description;
    int64_t memory_bytes = 0;
    int64_t running_layers = 0;
    std::string uuid;                   // of a GPU
    std::optional<double> utilisation;  // 0..1, of the last second or less
  };
  struct Limits {
    int64_t max_message_bytes = 0;
    int64_t max_chunk_bytes = 0;
    int64_t max_dimension = 0;
    int64_t max_layers_per_job = 0;
    int64_t max_jobs_per_tenant = 0;
    int64_t max_streams_per_tenant = 0;
    int64_t stream_credit_bytes = 0;
    int64_t max_inline_bytes = 0;
  };
  std::string version;
  std::string tenant;
  std::vector<Device> devices;
  std::vector<std::string> formats;  // as users write them: "mxfp4"
  std::vector<std::string> transforms;
  std::vector<std::string> methods;
  Limits limits;
};

// What an administrator sees of a tenant. Limits are 0 where there is none.
struct Tenant {
  struct Quotas {
    double weight = 1.0;
    int64_t max_jobs = 0;
    int64_t max_statistics = 0;
    int64_t max_streams = 0;
    int64_t max_calls = 0;
    double max_messages_per_second = 0.0;
    int64_t max_stored_bytes = 0;
    int64_t max_running_layers = 0;
    double max_device_seconds_per_day = 0.0;
  };
  struct Usage {
    int64_t jobs = 0;
    int64_t statistics = 0;
    int64_t streams = 0;
    int64_t uploads = 0;
    int64_t calls = 0;
    int64_t stored_bytes = 0;
    int64_t running_layers = 0;
    int64_t waiting_layers = 0;
    double device_seconds = 0.0;
    double device_seconds_today = 0.0;
  };
  std::string name;
  bool configured = true;
  Quotas quotas;
  Usage usage;
};

}  // namespace quantd::client
