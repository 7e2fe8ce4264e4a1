#include "server/metrics/metrics.h"

#include <array>
#include <mutex>
#include <utility>

#include "absl/strings/strip.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"
#include "server/metrics/process.h"
#include "server/metrics/tenant_labels.h"

namespace quantd::server {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;

const Histogram::BucketBoundaries kLatencySeconds = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
                                                     0.05,   0.1,   0.25,   0.5,   1.0,  2.5,
                                                     5.0,    10.0,  30.0,   60.0};
const Histogram::BucketBoundaries kWorkSeconds = {0.01,  0.025, 0.05,  0.1,   0.25, 0.5,
                                                  1.0,   2.5,   5.0,   10.0,  30.0, 60.0,
                                                  120.0, 300.0, 600.0, 1800.0};

constexpr std::array<const char*, 5> kTrafficNames = {"weights", "activations", "moments",
                                                      "artifacts", "watch"};

constexpr std::array<const char*, 3> kPriorityNames = {"low", "normal", "high"};

// A family whose label names are known, so that callers give the values alone.
template <typename Metric>
class Labelled {
 public:
  Labelled(prometheus::Family<Metric>& family, std::vector<std::string> names)
      : family_(&family), names_(std::move(names)) {}

  template <typename... Args>
  Metric& With(std::initializer_list<absl::string_view> values, Args&&... args) {
    std::map<std::string, std::string> labels;
    auto name = names_.begin();
    for (absl::string_view value : values) labels.emplace(*name++, value);
    return family_->Add(labels, std::forward<Args>(args)...);
  }
  void Remove(Metric& metric) { family_->Remove(&metric); }

 private:
  prometheus::Family<Metric>* family_;
  std::vector<std::string> names_;
};

// A gauge by device that is there as long as its value is known.
class DeviceGauge {
 public:
  explicit DeviceGauge(Labelled<Gauge> gauge) : gauge_(std::move(gauge)) {}

  void Set(absl::string_view device, std::optional<double> value) {
    std::lock_guard lock(mutex_);  // nobody sets what somebody else removes
    Gauge& gauge = gauge_.With({device});
    if (value.has_value()) {
      gauge.Set(*value);
    } else {
      gauge_.Remove(gauge);
    }
  }

 private:
  std::mutex mutex_;
  Labelled<Gauge> gauge_;
};

// A gauge by tenant that is set as a whole.
class TenantGauge {
 public:
  explicit TenantGauge(Labelled<Gauge> gauge) : gauge_(std::move(gauge)) {}

  template <typename Value>
  void Set(const std::map<std::string, Value>& values, TenantLabels& tenants) {
    std::lock_guard lock(mutex_);
    for (auto& [label, sum] : sums_) sum = 0;
    for (const auto& [tenant, value] : values) {
      sums_[tenants.For(tenant)] += static_cast<double>(value);
    }
    for (const auto& [label, sum] : sums_) gauge_.With({label}).Set(sum);
  }

 private:
  std::mutex mutex_;
  Labelled<Gauge> gauge_;
  std::map<std::string, double> sums_;
};

}  // namespace

struct Metrics::State final : public prometheus::Collectable {
  State(Metrics& owner, const Options& options)
      : metrics(owner), tenants(options.tenants, options.max_tenants) {
    build_info.With({options.version, options.backends, __VERSION__}).Set(1);
    for (size_t i = 0; i < kTrafficNames.size(); ++i) {
      open_streams[i] = &streams.With({kTrafficNames[i]});
      for (const std::string& tenant : options.tenants) {  // from 0 on, for rates
        received_bytes.With({tenants.For(tenant), kTrafficNames[i]});
        sent_bytes.With({tenants.For(tenant), kTrafficNames[i]});
      }
      commits[i] = &commit_seconds.With({kTrafficNames[i]}, kLatencySeconds);
    }
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<std::function<void(Metrics&)>> calls;
    {
      std::lock_guard lock(refresh_mutex);
      calls = refresh;
    }
    for (const auto& call : calls) call(metrics);
    std::vector<prometheus::MetricFamily> families = registry.Collect();
    for (prometheus::MetricFamily& family : ProcessMetrics()) {
      families.push_back(std::move(family));
    }
    return families;
  }

  // For counters of something else's: `to` never falls.
  void RaiseTo(int64_t to, Counter& counter) {
    std::lock_guard lock(refresh_mutex);
    const double more = static_cast<double>(to) - counter.Value();
    if (more > 0) counter.Increment(more);
  }

  Labelled<Counter> MakeCounter(const char* name, const std::vector<std::string>& labels,
                                const char* help) {
    definitions.push_back({name, "counter", labels, help});
    return {prometheus::BuildCounter().Name(name).Help(help).Register(registry), labels};
  }
  Labelled<Gauge> MakeGauge(const char* name, const std::vector<std::string>& labels,
                            const char* help) {
    definitions.push_back({name, "gauge", labels, help});
    return {prometheus::BuildGauge().Name(name).Help(help).Register(registry), labels};
  }
  Labelled<Histogram> MakeHistogram(const char* name, const std::vector<std::string>& labels,
                                    const char* help) {
    definitions.push_back({name, "histogram", labels, help});
    return {prometheus::BuildHistogram().Name(name).Help(help).Register(registry), labels};
  }

  Metrics& metrics;
  TenantLabels tenants;
  std::vector<Definition> definitions;
  prometheus::Registry registry;
  mutable std::mutex refresh_mutex;
  std::vector<std::function<void(Metrics&)>> refresh;

  // docs/metrics.md repeats name, type, labels and help of every one; a test compares.
  Labelled<Gauge> build_info = MakeGauge("quantd_build_info", {"version", "backends", "compiler"},
                                         "Always 1; the labels say what runs.");
  Gauge& serving =
      MakeGauge("quantd_serving", {}, "1 while new work is accepted, 0 while draining.").With({});
  Gauge& ready =
      MakeGauge("quantd_ready", {}, "1 while /readyz says so, 0 while draining or the store fails.")
          .With({});

  Labelled<Counter> rpcs =
      MakeCounter("quantd_rpcs_total", {"method", "code"}, "Finished RPCs by gRPC status code.");
  Labelled<Histogram> rpc_seconds = MakeHistogram(
      "quantd_rpc_duration_seconds", {"method"}, "Duration of RPCs; of streams, their whole life.");
  Labelled<Counter> rejected =
      MakeCounter("quantd_rejected_requests_total", {"tenant", "reason"},
                  "Requests that were refused, by the reason in their ErrorInfo.");
  Labelled<Gauge> streams =
      MakeGauge("quantd_open_streams", {"kind"}, "Streaming RPCs that are open.");
  Labelled<Counter> received_bytes = MakeCounter("quantd_received_bytes_total", {"tenant", "kind"},
                                                 "Payload bytes received, without framing.");
  Labelled<Counter> sent_bytes = MakeCounter("quantd_sent_bytes_total", {"tenant", "kind"},
                                             "Payload bytes sent, without framing.");

  Labelled<Counter> tokens = MakeCounter("quantd_accumulated_tokens_total", {"tenant"},
                                         "Tokens (rows of activations) added to statistics.");
  Histogram& chunk_durable =
      MakeHistogram("quantd_chunk_durable_seconds", {},
                    "From the receipt of an activation chunk to its durable acknowledgement.")
          .With({}, kLatencySeconds);
  Labelled<Histogram> commit_seconds =
      MakeHistogram("quantd_commit_duration_seconds", {"kind"},
                    "Duration of one commit of received bytes to disk.");

  Labelled<Counter> layers =
      MakeCounter("quantd_layers_total", {"tenant", "method", "format", "outcome"},
                  "Layers that have ended, by outcome.");
  Labelled<Histogram> layer_seconds =
      MakeHistogram("quantd_layer_duration_seconds", {"method", "format"},
                    "Duration of a layer on its device, from start to stored result.");
  Labelled<Histogram> stage_seconds = MakeHistogram("quantd_stage_duration_seconds", {"stage"},
                                                    "Duration of one stage of a layer.");
  Labelled<Counter> device_seconds = MakeCounter("quantd_device_seconds_total", {"tenant"},
                                                 "Device time used: what fair share counts.");
  Labelled<Histogram> queue_wait =
      MakeHistogram("quantd_queue_wait_seconds", {"priority"},
                    "From a fusion group being ready to its start, by the job's priority.");
  Labelled<Gauge> quota_waiting =
      MakeGauge("quantd_quota_waiting_groups", {"quota"},
                "Fusion groups that are ready and wait for a quota of their tenant.");
  Labelled<Counter> preemptions =
      MakeCounter("quantd_preemptions_total", {"reason"},
                  "Times that a slot went to another job while its last one had more to start.");
  Counter& expired_jobs =
      MakeCounter("quantd_expired_jobs_total", {}, "Jobs whose deadline passed before they ended.")
          .With({});
  TenantGauge queue_depth{
      MakeGauge("quantd_queue_depth", {"tenant"}, "Fusion groups that are ready and wait.")};
  Labelled<Gauge> running =
      MakeGauge("quantd_running_layers", {"device"}, "Layers that run at the moment.");
  Labelled<Gauge> memory_used =
      MakeGauge("quantd_device_memory_used_bytes", {"device"}, "Device memory in use.");
  Labelled<Gauge> memory_total =
      MakeGauge("quantd_device_memory_bytes", {"device"}, "Device memory that there is.");
  Labelled<Gauge> open_sums = MakeGauge("quantd_open_sum_bytes", {"device"},
                                        "Device memory that sums of open streams hold.");
  Labelled<Gauge> waiting_sums = MakeGauge("quantd_waiting_sums", {"device"},
                                           "Open streams that wait for room for their sums.");
  Labelled<Counter> page_outs = MakeCounter("quantd_sum_page_outs_total", {"device"},
                                            "Sums that made room for others on the device.");
  DeviceGauge utilisation{MakeGauge("quantd_device_utilisation_ratio", {"device"},
                                    "Share of the time in which the device computes.")};
  DeviceGauge power{MakeGauge("quantd_device_power_watts", {"device"}, "Power that it draws.")};
  DeviceGauge temperature{MakeGauge("quantd_device_temperature_celsius", {"device"},
                                    "Temperature of the device's processor.")};
  TenantGauge stored_bytes{
      MakeGauge("quantd_stored_bytes", {"tenant"}, "Bytes of stored blobs and staging files.")};
  Counter& sync_failures =
      MakeCounter("quantd_sync_failures_total", {},
                  "Syncs of files, directories and the database to disk that have failed.")
          .With({});
  Gauge& disk_free =
      MakeGauge("quantd_disk_free_bytes", {},
                "Room that the server may still use on the data directory's file system.")
          .With({});
  Gauge& disk_total =
      MakeGauge("quantd_disk_bytes", {}, "Size of the data directory's file system.").With({});
  Labelled<Counter> collected =
      MakeCounter("quantd_collected_total", {"kind"}, "What was deleted because of its age.");

  std::array<Gauge*, kTrafficNames.size()> open_streams{};
  std::array<Histogram*, kTrafficNames.size()> commits{};
};

Metrics::Metrics(const Options& options) : state_(std::make_shared<State>(*this, options)) {}

Metrics::~Metrics() = default;

void Metrics::RpcFinished(absl::string_view method, absl::string_view code, double seconds) {
  method = absl::StripPrefix(method, "/");
  state_->rpcs.With({method, code}).Increment();
  state_->rpc_seconds.With({method}, kLatencySeconds).Observe(seconds);
}

void Metrics::Rejected(absl::string_view tenant, absl::string_view reason) {
  const std::string label = tenant.empty() ? "" : state_->tenants.For(tenant);
  state_->rejected.With({label, reason}).Increment();
}

void Metrics::StreamOpened(Traffic kind) {
  state_->open_streams[static_cast<size_t>(kind)]->Increment();
}

void Metrics::StreamClosed(Traffic kind) {
  state_->open_streams[static_cast<size_t>(kind)]->Decrement();
}

void Metrics::BytesIn(absl::string_view tenant, Traffic kind, int64_t bytes) {
  state_->received_bytes
      .With({state_->tenants.For(tenant), kTrafficNames[static_cast<size_t>(kind)]})
      .Increment(static_cast<double>(bytes));
}

void Metrics::BytesOut(absl::string_view tenant, Traffic kind, int64_t bytes) {
  state_->sent_bytes.With({state_->tenants.For(tenant), kTrafficNames[static_cast<size_t>(kind)]})
      .Increment(static_cast<double>(bytes));
}

void Metrics::TokensAccumulated(absl::string_view tenant, int64_t tokens) {
  state_->tokens.With({state_->tenants.For(tenant)}).Increment(static_cast<double>(tokens));
}

void Metrics::ChunkDurable(double seconds) { state_->chunk_durable.Observe(seconds); }

void Metrics::CommitFinished(Traffic kind, double seconds) {
  state_->commits[static_cast<size_t>(kind)]->Observe(seconds);
}

void Metrics::LayerFinished(absl::string_view tenant, absl::string_view method,
                            absl::string_view format, absl::string_view outcome, double seconds) {
  state_->layers.With({state_->tenants.For(tenant), method, format, outcome}).Increment();
  state_->layer_seconds.With({method, format}, kWorkSeconds).Observe(seconds);
}

void Metrics::StageFinished(absl::string_view stage, double seconds) {
  state_->stage_seconds.With({stage}, kWorkSeconds).Observe(seconds);
}

void Metrics::DeviceSeconds(absl::string_view tenant, double seconds) {
  state_->device_seconds.With({state_->tenants.For(tenant)}).Increment(seconds);
}

void Metrics::QueueWait(int priority, double seconds) {
  state_->queue_wait.With({kPriorityNames.at(priority)}, kWorkSeconds).Observe(seconds);
}

void Metrics::SetQuotaWaiting(absl::string_view quota, int waiting) {
  state_->quota_waiting.With({quota}).Set(waiting);
}

void Metrics::SetPreemptions(int64_t by_priority, int64_t by_share) {
  state_->RaiseTo(by_priority, state_->preemptions.With({"priority"}));
  state_->RaiseTo(by_share, state_->preemptions.With({"share"}));
}

void Metrics::JobExpired() { state_->expired_jobs.Increment(); }

void Metrics::SetQueueDepth(const std::map<std::string, int>& waiting) {
  state_->queue_depth.Set(waiting, state_->tenants);
}

void Metrics::SetRunningLayers(absl::string_view device, int layers) {
  state_->running.With({device}).Set(layers);
}

void Metrics::SetDeviceMemory(absl::string_view device, int64_t used_bytes, int64_t total_bytes) {
  state_->memory_used.With({device}).Set(static_cast<double>(used_bytes));
  state_->memory_total.With({device}).Set(static_cast<double>(total_bytes));
}

void Metrics::SetDeviceActivity(absl::string_view device, const DeviceActivity& activity) {
  state_->utilisation.Set(device, activity.utilisation);
  state_->power.Set(device, activity.power_watts);
  state_->temperature.Set(device, activity.temperature_celsius);
}

void Metrics::SetStoredBytes(const std::map<std::string, int64_t>& bytes) {
  state_->stored_bytes.Set(bytes, state_->tenants);
}

void Metrics::Collected(absl::string_view kind) { state_->collected.With({kind}).Increment(); }

void Metrics::SetSyncFailures(int64_t failures) {
  state_->RaiseTo(failures, state_->sync_failures);
}

void Metrics::SetOpenSums(absl::string_view device, int64_t bytes, int waiting, int64_t page_outs) {
  state_->open_sums.With({device}).Set(static_cast<double>(bytes));
  state_->waiting_sums.With({device}).Set(waiting);
  state_->RaiseTo(page_outs, state_->page_outs.With({device}));
}

void Metrics::SetServing(bool serving) { state_->serving.Set(serving ? 1 : 0); }

void Metrics::SetReady(bool ready) { state_->ready.Set(ready ? 1 : 0); }

void Metrics::SetDisk(int64_t free_bytes, int64_t total_bytes) {
  state_->disk_free.Set(static_cast<double>(free_bytes));
  state_->disk_total.Set(static_cast<double>(total_bytes));
}

void Metrics::OnScrape(std::function<void(Metrics&)> refresh) {
  std::lock_guard lock(state_->refresh_mutex);
  state_->refresh.push_back(std::move(refresh));
}

std::string Metrics::Text() { return prometheus::TextSerializer().Serialize(state_->Collect()); }

const std::vector<Metrics::Definition>& Metrics::definitions() const { return state_->definitions; }

}  // namespace quantd::server
