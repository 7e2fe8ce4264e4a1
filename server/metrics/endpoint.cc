// prometheus-cpp's own endpoint is not used: the HTTP server below it runs on stacks of 100 KiB, of
// which OpenBLAS's thread-local storage takes 60, so that any request it answers with an error
// overflows one and ends the process.

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "httplib.h"
#include "server/config/address.h"
#include "server/metrics/metrics.h"

namespace quantd::server {
namespace {

// A scrape is short; a client that stalls must not keep the others out for long.
constexpr int kThreads = 4;
constexpr int kTimeoutSeconds = 5;
constexpr char kTextFormat[] = "text/plain; version=0.0.4; charset=utf-8";
constexpr char kPlainText[] = "text/plain; charset=utf-8";

}  // namespace

struct MetricsEndpoint::Server {
  httplib::Server http;
  std::thread listener;
};

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Serve(
    Metrics& metrics, std::function<absl::Status()> ready, absl::string_view text) {
  const absl::StatusOr<Address> address = ParseAddress(text);
  if (!address.ok()) return address.status();
  auto server = std::make_unique<Server>();
  httplib::Server& http = server->http;
  http.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
  http.set_read_timeout(kTimeoutSeconds);
  http.set_write_timeout(kTimeoutSeconds);
  http.set_keep_alive_timeout(kTimeoutSeconds);
  http.set_payload_max_length(0);
  // The library's default lets two servers share a port and its scrapes.
  http.set_socket_options([](int socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
  http.Get("/metrics", [&metrics](const httplib::Request&, httplib::Response& response) {
    response.set_content(metrics.Text(), kTextFormat);
  });
  http.Get("/healthz", [](const httplib::Request&, httplib::Response& response) {
    response.set_content("alive\n", kPlainText);
  });
  http.Get("/readyz", [ready = std::move(ready)](const httplib::Request&,
                                                 httplib::Response& response) {
    const absl::Status status = ready();
    response.status = status.ok() ? 200 : 503;
    response.set_content(
        status.ok() ? "ready\n" : absl::StrCat("not ready: ", status.message(), "\n"), kPlainText);
  });
  int port = address->port;
  if (port == 0) {
    port = http.bind_to_any_port(address->host);
  } else if (!http.bind_to_port(address->host, port)) {
    port = -1;
  }
  if (port < 0) {
    return absl::UnavailableError(
        absl::StrCat("metrics endpoint: cannot listen on ", text,
                     "; expected a free port and an address of this machine"));
  }
  server->listener = std::thread([&http] { http.listen_after_bind(); });
  while (!http.is_running()) std::this_thread::yield();  // stop() would miss it before that
  return std::unique_ptr<MetricsEndpoint>(new MetricsEndpoint(std::move(server), port));
}

MetricsEndpoint::MetricsEndpoint(std::unique_ptr<Server> server, int port)
    : server_(std::move(server)), port_(port) {}

MetricsEndpoint::~MetricsEndpoint() {
  server_->http.stop();
  server_->listener.join();
}

}  // namespace quantd::server
