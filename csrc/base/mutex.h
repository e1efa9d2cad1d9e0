#pragma once

#include <mutex>

// Clang checks these with -Wthread-safety; other compilers see nothing.
#if defined(__clang__)
#define AIRI_ANNOTATE(x) __attribute__((x))
#else
#define AIRI_ANNOTATE(x)
#endif
#define AIRI_GUARDED_BY(mutex) AIRI_ANNOTATE(guarded_by(mutex))

namespace airi {

// std::mutex that clang's thread-safety analysis knows.
class AIRI_ANNOTATE(capability("mutex")) Mutex {
 public:
  void lock() AIRI_ANNOTATE(acquire_capability()) { mutex_.lock(); }
  void unlock() AIRI_ANNOTATE(release_capability()) { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

// Holds a Mutex for a scope.
class AIRI_ANNOTATE(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) AIRI_ANNOTATE(acquire_capability(mutex)) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() AIRI_ANNOTATE(release_capability()) { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace airi
