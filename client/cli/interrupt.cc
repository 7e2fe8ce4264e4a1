#include "client/cli/interrupt.h"

#include <semaphore.h>
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

// Posted by each SIGINT and SIGTERM.
sem_t signals;

void PostSignal(int /*signal*/) { sem_post(&signals); }

void WaitForSignals() {
  while (true) {
    while (sem_wait(&signals) != 0) {
    }
    Interrupts& state = State();
    const std::lock_guard lock(state.mutex);
    if (state.client == nullptr || state.interrupted) _exit(1);
    state.interrupted = true;
    state.client->Interrupt();
  }
}

// Left alone where it is ignored, as a shell does for what it runs in the background.
void Catch(int signal) {
  struct sigaction old {};
  sigaction(signal, nullptr, &old);
  if (old.sa_handler == SIG_IGN) return;
  struct sigaction action {};
  action.sa_handler = PostSignal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, nullptr);
}

}  // namespace

// A handler rather than sigwait: libraries start threads before main, in which the signals cannot
// be blocked, and which would end the process when one of them is chosen to take the signal.
void HandleInterrupts() {
  sem_init(&signals, 0, 0);
  std::thread(WaitForSignals).detach();
  Catch(SIGINT);
  Catch(SIGTERM);
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
