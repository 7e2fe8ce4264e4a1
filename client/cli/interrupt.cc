#include "client/cli/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <mutex>
#include <thread>

namespace quantd::cli {
namespace {

// Never destroyed: the waiting thread outlives main().
struct Interrupts {
  std::mutex mutex;
  client::Client* client = nullptr;
  bool interrupted = false;
};
Interrupts& State() {
  static auto* state = new Interrupts;
  return *state;
}

void WaitForSignals(sigset_t signals) {
  while (true) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) continue;
    Interrupts& state = State();
    const std::lock_guard lock(state.mutex);
    if (state.client == nullptr || state.interrupted) _exit(1);
    state.interrupted = true;
    state.client->Interrupt();
  }
}

}  // namespace

void HandleInterrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  // Inherited by every thread, gRPC's included: only the thread below takes them.
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread(WaitForSignals, signals).detach();
}

InterruptScope::InterruptScope(client::Client& client) {
  const std::lock_guard lock(State().mutex);
  State().client = &client;
}

InterruptScope::~InterruptScope() {
  const std::lock_guard lock(State().mutex);
  State().client = nullptr;
}

}  // namespace quantd::cli
