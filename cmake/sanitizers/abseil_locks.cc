// Shows absl::Mutex and absl::CondVar to ThreadSanitizer.
//
// ThreadSanitizer knows the order between two threads from the locks that instrumented code takes.
// gRPC locks with absl::Mutex, whose Debian library is not instrumented, so that every hand-over
// from one gRPC thread to another would be reported as a race of ours. This library is linked in
// front of Abseil's: its definitions win, report the locking and call the originals.

#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <string>

namespace {

#define QUANTD_STRING(text) #text
#define QUANTD_EXPANDED_STRING(text) QUANTD_STRING(text)

// Abseil's own definition of the member function whose mangled name, after "absl::<version>::",
// is `name`. It is called as a plain function with the object first, as the Itanium ABI passes it.
template <typename Function>
Function* Original(const std::string& name) {
  const std::string version = QUANTD_EXPANDED_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  const std::string symbol = "_ZN4absl" + std::to_string(version.size()) + version + name;
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, symbol.c_str()));
}

void ReportUnlocked(absl::Mutex* mutex) {
  __tsan_mutex_pre_unlock(mutex, 0);
  __tsan_mutex_post_unlock(mutex, 0);
}

void ReportLocked(absl::Mutex* mutex) {
  __tsan_mutex_pre_lock(mutex, 0);
  __tsan_mutex_post_lock(mutex, 0, 0);
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static auto* const original = Original<void(Mutex*)>("5Mutex4LockEv");
  __tsan_mutex_pre_lock(this, 0);
  original(this);
  __tsan_mutex_post_lock(this, 0, 0);
}

bool Mutex::TryLock() {
  static auto* const original = Original<bool(Mutex*)>("5Mutex7TryLockEv");
  __tsan_mutex_pre_lock(this, __tsan_mutex_try_lock);
  const bool locked = original(this);
  const unsigned result = locked ? 0 : __tsan_mutex_try_lock_failed;
  __tsan_mutex_post_lock(this, __tsan_mutex_try_lock | result, 0);
  return locked;
}

void Mutex::Unlock() {
  static auto* const original = Original<void(Mutex*)>("5Mutex6UnlockEv");
  __tsan_mutex_pre_unlock(this, 0);
  original(this);
  __tsan_mutex_post_unlock(this, 0);
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const original = Original<void(CondVar*, Mutex*)>("7CondVar4WaitEPNS0_5MutexE");
  ReportUnlocked(mutex);
  original(this, mutex);
  ReportLocked(mutex);
}

// WaitWithTimeout calls this one.
bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static auto* const original =
      Original<bool(CondVar*, Mutex*, Time)>("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  ReportUnlocked(mutex);
  const bool expired = original(this, mutex, deadline);
  ReportLocked(mutex);
  return expired;
}

ABSL_NAMESPACE_END
}  // namespace absl
