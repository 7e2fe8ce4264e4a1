#include "tests/bench/bare_server.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <csignal>
#include <iostream>
#include <limits>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "quantd/v1/calibration.pb.h"
#include "tests/bench/byte_stream.h"

namespace quantd::bench {
namespace {

class Sink final : public grpc::ServerGenericBidiReactor {
 public:
  Sink() {
    v1::StreamActivationsResponse unlimited;
    unlimited.set_credit_bytes(std::numeric_limits<int64_t>::max());
    answer_ = ToBytes(unlimited.SerializeAsString());
    StartWrite(&answer_);
    StartRead(&message_);
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    StartRead(&message_);
  }
  void OnDone() override { delete this; }

  grpc::ByteBuffer answer_;
  grpc::ByteBuffer message_;
};

class SinkService final : public grpc::CallbackGenericService {
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new Sink;
  }
};

}  // namespace

int RunBareServer() {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);

  SinkService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(4 << 20);
  builder.RegisterCallbackGenericService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  std::cerr << R"({"event": "listening", "address": "127.0.0.1:)" << port << "\"}" << std::endl;
  int signal = 0;
  sigwait(&stop, &signal);
  server->Shutdown();
  return 0;
}

}  // namespace quantd::bench
