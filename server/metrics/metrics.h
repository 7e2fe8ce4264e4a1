#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quantd::server {

// What a stream or a stored byte string is about: the label `kind`.
enum class Traffic { kWeights, kActivations, kMoments, kArtifacts, kWatch };

// Everything that the server counts and measures, one typed method a metric; names, labels and
// units are documented in docs/metrics.md. Times are in seconds, sizes in bytes.
// The label `tenant` is bounded: the tenants given at the start and the first ones seen get their
// own value, up to `max_tenants`, the rest share "other". Thread-safe; no method fails or blocks
// for long.
class Metrics {
 public:
  struct Options {
    std::string version = "unknown";
    std::string backends = "cpu";           // what this build can run on, comma-separated
    std::vector<std::string> tenants = {};  // have a label of their own before all others
    int max_tenants = 50;
  };
  explicit Metrics(const Options& options);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // `method`: full name, "quantd.v1.Jobs/CreateJob" (a leading slash is dropped); `code`: name of
  // the gRPC status code, "OK". Only for methods that exist: the label is not bounded otherwise.
  void RpcFinished(absl::string_view method, absl::string_view code, double seconds);
  // ErrorInfo's reason: RESOURCE_EXHAUSTED requests and others that were refused. `tenant`: empty
  // where the caller is nobody.
  void Rejected(absl::string_view tenant, absl::string_view reason);
  void StreamOpened(Traffic kind);
  void StreamClosed(Traffic kind);
  void BytesIn(absl::string_view tenant, Traffic kind, int64_t bytes);  // payload, without framing
  void BytesOut(absl::string_view tenant, Traffic kind, int64_t bytes);

  void TokensAccumulated(absl::string_view tenant, int64_t tokens);
  // From the receipt of a chunk to its durable acknowledgement.
  void ChunkDurable(double seconds);
  void CommitFinished(Traffic kind, double seconds);  // one sync of staged bytes or snapshot

  // `method`, `format`: as recipes write them; `outcome`: "succeeded", "failed", "cancelled" or the
  // report's typed outcome.
  void LayerFinished(absl::string_view tenant, absl::string_view method, absl::string_view format,
                     absl::string_view outcome, double seconds);
  void StageFinished(absl::string_view stage, double seconds);
  void DeviceSeconds(absl::string_view tenant, double seconds);
  // From ready to started; `priority`: 0 low, 1 normal, 2 high.
  void QueueWait(int priority, double seconds);
  // Groups that wait for a quota of their tenant; `quota`: as the configuration names it.
  void SetQuotaWaiting(absl::string_view quota, int waiting);
  // How often a job gave a slot up between its layers, since the start; never falls.
  void SetPreemptions(int64_t by_priority, int64_t by_share);
  void JobExpired();
  // Groups that wait, by tenant. Replaces all values: a tenant that is not in it has 0.
  void SetQueueDepth(const std::map<std::string, int>& waiting);
  void SetRunningLayers(absl::string_view device, int layers);
  void SetDeviceMemory(absl::string_view device, int64_t used_bytes, int64_t total_bytes);
  // Of open streams: bytes on the device, streams that wait for room there, and how many sums were
  // asked to page out since the start, which never falls.
  void SetOpenSums(absl::string_view device, int64_t bytes, int waiting, int64_t page_outs);
  struct DeviceActivity {
    std::optional<double> utilisation;  // 0..1
    std::optional<double> power_watts;
    std::optional<double> temperature_celsius;
  };
  // What is not known has no series.
  void SetDeviceActivity(absl::string_view device, const DeviceActivity& activity);
  // Of blobs and staging files, by tenant. Replaces all values.
  void SetStoredBytes(const std::map<std::string, int64_t>& bytes);
  // Something that retention deleted: "job", "statistic" or "upload".
  void Collected(absl::string_view kind);
  // Since the start: never falls.
  void SetSyncFailures(int64_t failures);
  void SetServing(bool serving);  // false while draining
  void SetReady(bool ready);      // what /readyz says
  // Of the file system of the data directory; `free_bytes` as far as this process may use it.
  void SetDisk(int64_t free_bytes, int64_t total_bytes);

  // `refresh` runs before every scrape, to set the gauges above. May be called from any thread.
  void OnScrape(std::function<void(Metrics&)> refresh);

  // Everything in Prometheus text format, as a scrape sees it.
  std::string Text();

  struct Definition {
    std::string name;
    std::string type;  // "counter", "gauge" or "histogram"
    std::vector<std::string> labels;
    std::string help;
  };
  // What there is, whether it has samples yet or not.
  const std::vector<Definition>& definitions() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Serves over HTTP, until it is destroyed: /metrics; /healthz, which answers 200 as long as the
// process does (liveness); and /readyz, 200 or 503 with the reason. The metrics must outlive it.
class MetricsEndpoint {
 public:
  // `ready` may be called from any thread, also at once; the message of its error is shown to
  // whoever asks. `text`: HOST:PORT; port 0 picks a free one. UNAVAILABLE if it cannot be bound,
  // INVALID_ARGUMENT if it is no address.
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Serve(Metrics& metrics,
                                                                std::function<absl::Status()> ready,
                                                                absl::string_view text);
  ~MetricsEndpoint();
  int port() const { return port_; }  // that is bound

 private:
  struct Server;
  MetricsEndpoint(std::unique_ptr<Server> server, int port);
  std::unique_ptr<Server> server_;
  int port_;
};

}  // namespace quantd::server
