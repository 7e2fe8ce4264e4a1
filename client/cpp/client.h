#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/cpp/byte_source.h"
#include "client/cpp/resources.h"

namespace quantd::client {

class Connection;

struct ConnectOptions {
  std::string address;           // HOST:PORT
  std::string token;             // bearer token, or empty
  bool tls = false;              // implied by the files below
  std::string ca_file;           // PEM; the system's authorities where empty
  std::string certificate_file;  // PEM, of the client, for mutual TLS
  std::string key_file;
  // How long the first call may take.
  absl::Duration connect_timeout = absl::Seconds(10);
  // How long a call that has begun keeps trying while the server cannot be reached, or refuses it
  // at a limit and says when to come back (RetryInfo; not where that is later). Progress starts it
  // over.
  absl::Duration retry_for = absl::Seconds(60);
  // In flight and not yet durable, at most, on one activation stream.
  int64_t keep_bytes = int64_t{64} << 20;
  // Data of one message, at most; never more than the server's limits.
  int64_t chunk_bytes = int64_t{1} << 20;
};

// Bytes done and bytes in all. Called from the thread that made the call.
using ProgressCallback = std::function<void(int64_t done, int64_t total)>;

struct JobSpec {
  std::string job_id;  // the server chooses one where empty
  std::string display_name;
  compute::Recipe recipe;
  std::vector<Layer> layers;
  Priority priority = Priority::kUnspecified;  // normal
  std::optional<absl::Time> deadline = std::nullopt;
};

struct CreatedJob {
  Job job;  // with every default of its recipe filled in
  JobEstimate estimate;
};

struct ActivationStreamSpec {
  std::string statistic;  // name
  std::string stream_id;
  compute::DType dtype = compute::DType::kF32;  // of paired data, too
  int64_t cols = 0;
  StatisticKind kind = StatisticKind::kSecondMoment;
  int64_t paired_cols = 0;  // kCrossMoment: cols; kResidualMoment: rows of the layer's weight
  MomentLayout layout = MomentLayout::kFull;
  int64_t block_size = 0;              // kBlockDiagonal
  std::optional<int64_t> sample_rows;  // the server's default where unset
  uint64_t sample_seed = 0;
  // Hands the bytes over in shared memory, to a server on this host that runs with --shared_memory
  // and as this user (or root). INVALID_ARGUMENT for a server elsewhere.
  bool shared_memory = false;
};

// Tokens, one a row, with what the statistic's kind takes beside them.
struct ActivationRows {
  int64_t rows = 0;
  std::string data;                 // rows x cols elements: x, of the paired kinds xhat
  std::vector<float> weights = {};  // kWeighted: one a row, finite and >= 0
  std::string paired = {};  // kCrossMoment: x, kResidualMoment: r - rhat; rows x paired_cols

  int64_t bytes() const {
    return static_cast<int64_t>(data.size() + weights.size() * sizeof(float) + paired.size());
  }
};

// Streams activations to a statistic. Survives reconnects: what the server has not yet made durable
// is kept and sent again. Not thread-safe; several streams may run at once. Destroying a stream
// that was not closed abandons it: what is durable stays.
class ActivationStream {
 public:
  virtual ~ActivationStream() = default;
  // Sequence number of the next chunk: 1, or more where an earlier client with the same stream_id
  // left off. The caller then goes on with its chunk number next_seq().
  virtual int64_t next_seq() const = 0;
  // Bytes of one Send, at most: those of data, weights and paired data together.
  virtual int64_t max_chunk_bytes() const = 0;
  // Returns once the chunk is kept; blocks while too much is.
  virtual absl::Status Send(ActivationRows rows) = 0;
  absl::Status Send(int64_t rows, std::string data) {
    return Send({.rows = rows, .data = std::move(data)});
  }
  // Returns once everything sent so far is durable.
  virtual absl::Status Flush() = 0;
  // As Flush, and ends the stream.
  virtual absl::Status Close() = 0;
  virtual int64_t durable_seq() const = 0;
  virtual int64_t received_seq() const = 0;
};

// Where the rows of a whole stream come from; null for what the kind does not take.
struct ActivationSources {
  ByteSource* data = nullptr;
  ByteSource* weights = nullptr;  // F32
  ByteSource* paired = nullptr;
};

struct MomentSpec {
  std::string statistic;  // name
  StatisticKind kind = StatisticKind::kSecondMoment;
  int64_t cols = 0;
  int64_t paired_cols = 0;                      // as in ActivationStreamSpec
  compute::DType dtype = compute::DType::kF32;  // F32 or F64
  bool mean = true;                             // E[x x^T]; else the sum over the tokens
  int64_t tokens = 1;
  double weight_sum = 0.0;  // kWeighted: of the tokens' weights

  int64_t rows() const { return paired_cols > 0 ? paired_cols : cols; }  // of the matrix
};

// A statistic as it leaves the server.
struct ExportedMoment {
  MomentSpec spec;
  MomentLayout layout = MomentLayout::kFull;
  int64_t block_size = 0;
  std::string matrix;  // spec.rows() x cols or cols/B x B x B elements of spec.dtype
  int64_t sample_rows = 0;
  std::string sample;  // sample_rows x cols, F32
};

// A connection to a server. Every call blocks until it is done, tries again while the server cannot
// be reached, and returns errors that name the field, what was expected and what came (errors.h).
// Names may be full ("tenants/t/jobs/j") or the last segment ("j"). Thread-safe.
class Client {
 public:
  // UNAVAILABLE at once where nothing listens; UNAUTHENTICATED.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const ConnectOptions& options);
  ~Client();

  // What the server said when the connection was made, and now.
  const ServerInfo& server() const;
  absl::StatusOr<ServerInfo> GetServerInfo();
  // Needs the role admin.
  absl::StatusOr<std::vector<Tenant>> ListTenants();

  // Ends every call that runs, and every later one, with CANCELLED. From any thread.
  void Interrupt();

  std::string JobName(absl::string_view job) const;
  std::string StatisticName(absl::string_view statistic) const;

  absl::StatusOr<CreatedJob> CreateJob(const JobSpec& spec, bool validate_only = false);
  absl::StatusOr<Job> GetJob(absl::string_view job);
  absl::StatusOr<std::vector<Job>> ListJobs();
  absl::StatusOr<Job> CancelJob(absl::string_view job);
  absl::Status DeleteJob(absl::string_view job);
  // Calls `update` with the job now and after every change, until it has ended; reconnects.
  absl::StatusOr<Job> WatchJob(absl::string_view job,
                               const std::function<void(const JobUpdate&)>& update);

  // How many bits each weight gets, from what the layers of a job measured (candidates.h).
  absl::StatusOr<Plan> PlanJob(absl::string_view job, double bits_per_weight);

  // Uploads layer.rows x layer.cols elements of layer.dtype, from where an earlier upload of
  // layer.name stopped.
  absl::Status UploadWeights(const Layer& layer, ByteSource& weights,
                             const ProgressCallback& progress = nullptr);
  absl::StatusOr<UploadStatus> GetUploadStatus(absl::string_view layer);

  absl::StatusOr<std::unique_ptr<ActivationStream>> OpenActivationStream(
      const ActivationStreamSpec& spec);
  // A whole T x cols matrix (and what belongs to its rows) through one stream, in chunks of equal
  // size, so that calling it again with the same arguments continues a stream that broke off.
  absl::Status StreamActivations(const ActivationStreamSpec& spec, ByteSource& activations,
                                 const ProgressCallback& progress = nullptr);
  absl::Status StreamActivations(const ActivationStreamSpec& spec, const ActivationSources& sources,
                                 const ProgressCallback& progress = nullptr);
  // Stores a moment of spec.rows() x cols. Sealed from the start.
  absl::StatusOr<Statistic> ImportStatistic(const MomentSpec& spec, ByteSource& moment,
                                            const ProgressCallback& progress = nullptr);
  // A sealed statistic, verified: DATA_LOSS where what came does not match its checksums.
  absl::StatusOr<ExportedMoment> ExportStatistic(absl::string_view statistic,
                                                 const ProgressCallback& progress = nullptr);
  absl::StatusOr<Statistic> GetStatistic(absl::string_view statistic);
  absl::StatusOr<std::vector<Statistic>> ListStatistics();
  absl::StatusOr<Statistic> SealStatistic(absl::string_view statistic);
  absl::StatusOr<Statistic> MergeStatistics(absl::string_view statistic_id,
                                            const std::vector<std::string>& sources);
  absl::Status DeleteStatistic(absl::string_view statistic);

  absl::StatusOr<ErrorReport> GetErrorReport(absl::string_view layer);  // full name
  absl::StatusOr<std::vector<Artifact>> ListArtifacts(absl::string_view job);
  // Hands over the bytes in order; resumes where a stream breaks off. DATA_LOSS where they do not
  // match the artifact's digest: what was handed over is then worthless.
  absl::Status ReadArtifact(absl::string_view artifact,
                            const std::function<absl::Status(absl::string_view)>& sink,
                            const ProgressCallback& progress = nullptr);
  // Into a file, which appears once it is whole.
  absl::Status DownloadArtifact(absl::string_view artifact, const std::string& path,
                                const ProgressCallback& progress = nullptr);

 private:
  explicit Client(std::shared_ptr<Connection> connection);
  const std::shared_ptr<Connection> connection_;
};

}  // namespace quantd::client
