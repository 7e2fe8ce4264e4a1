// Shows the order of gRPC's server callbacks to ThreadSanitizer.
//
// What a thread does up to StartRead, StartWrite or Finish happens before the callback that says it
// is done, in whichever thread that comes, and OnDone comes after all other callbacks. gRPC sees to
// it with atomics inside Debian's library, which is not instrumented. The functions below win over
// that library's own, report the hand-over and call the original. They are the narrowest ones: what
// gRPC's headers do with our messages, from serializing to parsing, is between them and checked.

#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpcpp/server.h>
#include <sanitizer/tsan_interface.h>

#include <atomic>

namespace {

template <typename Function>
Function* Original(const char* symbol) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, symbol));
}

using Callback = grpc_completion_queue_functor;

// What runs every callback of a server: one function of the headers.
std::atomic<void (*)(Callback* callback, int ok)> run = nullptr;

void AcquireAndRun(Callback* callback, int ok) {
  __tsan_acquire(callback);
  run.load()(callback, ok);
}

}  // namespace

// Operations are handed over here, with what is to run when they are done.
grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* operations, size_t count,
                                      void* tag, void* reserved) {
  static auto* const original = Original<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  __tsan_release(tag);
  return original(call, operations, count, tag, reserved);
}

namespace grpc {

// Every operation of a server begins here. Its tag is itself, or a callback.
void Server::PerformOpsOnCall(internal::CallOpSetInterface* operations, internal::Call* call) {
  static auto* const original =
      Original<void(Server*, internal::CallOpSetInterface*, internal::Call*)>(
          "_ZN4grpc6Server16PerformOpsOnCallEPNS_8internal18CallOpSetInterfaceEPNS1_4CallE");
  if (void* tag = operations->core_cq_tag(); tag != operations) {
    auto* callback = static_cast<Callback*>(tag);
    if (callback->functor_run != AcquireAndRun) {
      run = callback->functor_run;
      callback->functor_run = AcquireAndRun;
    }
  }
  original(this, operations, call);
}

// The last of a call's callbacks leads here; the library may have counted it, unseen.
void internal::ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  static auto* const original = Original<void(ServerCallbackCall*, bool)>(
      "_ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb");
  callbacks_outstanding_.load(std::memory_order_acquire);
  original(this, inline_ondone);
}

}  // namespace grpc
