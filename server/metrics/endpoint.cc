#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "prometheus/exposer.h"
#include "server/metrics/metrics.h"

namespace quantd::server {
namespace {

// A scrape is short; a client that stalls must not keep the others out for long.
constexpr char kThreads[] = "2";
constexpr char kRequestTimeoutMs[] = "10000";

}  // namespace

struct MetricsEndpoint::Server {
  explicit Server(const std::string& address)
      : exposer(std::vector<std::string>{"listening_ports", address, "num_threads", kThreads,
                                         "request_timeout_ms", kRequestTimeoutMs}) {}
  prometheus::Exposer exposer;
  std::shared_ptr<prometheus::Collectable> collectable;  // the exposer keeps a weak pointer
};

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Serve(Metrics& metrics,
                                                                        absl::string_view address) {
  // The HTTP server throws where it cannot bind, and says why on stderr alone.
  try {
    auto server = std::make_unique<Server>(std::string(address));
    const std::vector<int> ports = server->exposer.GetListeningPorts();
    if (ports.empty()) {
      return absl::UnavailableError(absl::StrCat("metrics endpoint: cannot listen on ", address));
    }
    server->collectable = metrics.collectable();
    server->exposer.RegisterCollectable(server->collectable);
    return std::unique_ptr<MetricsEndpoint>(new MetricsEndpoint(std::move(server), ports.front()));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("metrics endpoint: cannot listen on ", address,
                     "; expected a free port and an address of this machine (", error.what(), ")"));
  }
}

MetricsEndpoint::MetricsEndpoint(std::unique_ptr<Server> server, int port)
    : server_(std::move(server)), port_(port) {}

MetricsEndpoint::~MetricsEndpoint() = default;

}  // namespace quantd::server
