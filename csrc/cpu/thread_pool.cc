#include "cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/relax.h"

namespace airi::cpu {
namespace {

constexpr std::uint64_t kOpen = std::uint64_t{1} << 31;
constexpr std::uint64_t kInsideMask = kOpen - 1;
constexpr int kMaxThreads = 1024;
// Polls between two looks at the clock, and before a waiting caller yields its core.
constexpr int kPollsPerLook = 32;
constexpr int kPollsBeforeYield = 4096;

thread_local bool inside_chunk = false;

constexpr std::uint64_t kOneAtTheEnd = std::uint64_t{1} << 32;

constexpr std::int64_t begin_of(std::uint64_t span) {
  return static_cast<std::int64_t>(span & (kOneAtTheEnd - 1));
}
constexpr std::int64_t end_of(std::uint64_t span) { return static_cast<std::int64_t>(span >> 32); }
constexpr std::uint64_t span_of(std::int64_t begin, std::int64_t end) {
  return (static_cast<std::uint64_t>(end) << 32) | static_cast<std::uint64_t>(begin);
}

constexpr std::uint64_t gate_of(std::uint32_t job, bool open) {
  return (static_cast<std::uint64_t>(job) << 32) | (open ? kOpen : 0);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  AIRI_CHECK(threads >= 1) << "threads = " << threads;
  start(threads);
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::resize(int threads) {
  AIRI_CHECK(threads >= 1) << "threads = " << threads;
  AIRI_CHECK(!inside_chunk) << "resize from inside a chunk";
  const std::lock_guard lock(mutex_);
  if (threads == size()) return;
  stop();
  start(threads);
}

void ThreadPool::wake() noexcept {
  // Where somebody else holds it, a job runs.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock() || sleepers_.load() == 0) return;
  epoch_.fetch_add(1);
  epoch_.notify_all();
}

std::optional<std::int64_t> ThreadPool::Run::take_front() noexcept {
  std::uint64_t old = span.load(std::memory_order_relaxed);
  while (begin_of(old) < end_of(old)) {
    if (span.compare_exchange_weak(old, old + 1, std::memory_order_relaxed)) return begin_of(old);
  }
  return std::nullopt;
}

std::optional<std::int64_t> ThreadPool::Run::take_back() noexcept {
  std::uint64_t old = span.load(std::memory_order_relaxed);
  while (begin_of(old) < end_of(old)) {
    if (span.compare_exchange_weak(old, old - kOneAtTheEnd, std::memory_order_relaxed))
      return end_of(old) - 1;
  }
  return std::nullopt;
}

void ThreadPool::start(int threads) {
  runs_ = std::vector<Run>(static_cast<std::size_t>(threads));
  stopping_.store(false, std::memory_order_relaxed);
  const std::uint32_t seen = epoch_.load(std::memory_order_relaxed);
  workers_.reserve(static_cast<std::size_t>(threads));
  try {
    for (int i = 1; i < threads; ++i) {
      workers_.emplace_back([this, i, seen] { worker_loop(i, seen); });
    }
  } catch (const std::system_error&) {
    // The system grants no more. Those there are do all the work: runs get stolen.
    threads = static_cast<int>(workers_.size()) + 1;
  }
  size_.store(threads, std::memory_order_relaxed);
}

void ThreadPool::stop() noexcept {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run(std::int64_t chunks, void* context, Call call) {
  if (inside_chunk || chunks <= 1 || size() == 1) {
    for (std::int64_t i = 0; i < chunks; ++i) call(context, i);
    return;
  }
  AIRI_CHECK(chunks < static_cast<std::int64_t>(kOneAtTheEnd)) << "chunks = " << chunks;
  const std::lock_guard lock(mutex_);
  call_ = call;
  context_ = context;
  error_ = nullptr;
  failed_.store(false, std::memory_order_relaxed);
  const auto threads = static_cast<std::int64_t>(runs_.size());
  for (std::int64_t i = 0; i < threads; ++i) {
    runs_[static_cast<std::size_t>(i)].span.store(span_of(chunks * i / threads, chunks * (i + 1) / threads),
                                                  std::memory_order_relaxed);
  }
  const std::uint32_t job = epoch_.load(std::memory_order_relaxed) + 1;
  gate_.store(gate_of(job, true), std::memory_order_release);
  // Both sequentially consistent: either we see the sleeper or it sees the new epoch.
  epoch_.store(job);
  if (sleepers_.load() > 0) epoch_.notify_all();

  work_on_chunks(0);

  gate_.fetch_and(~kOpen, std::memory_order_relaxed);
  for (int polls = 0; (gate_.load(std::memory_order_acquire) & kInsideMask) != 0; ++polls) {
    if (polls < kPollsBeforeYield) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
  if (failed_.load(std::memory_order_relaxed)) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::work_on_chunks(int self) noexcept {
  const std::size_t threads = runs_.size();
  const auto own = static_cast<std::size_t>(self);
  inside_chunk = true;
  try {
    while (const auto chunk = runs_[own].take_front()) call_(context_, *chunk);
    for (std::size_t i = 1; i < threads; ++i) {
      while (const auto chunk = runs_[(own + i) % threads].take_back()) call_(context_, *chunk);
    }
  } catch (...) {
    for (Run& run : runs_) run.span.store(0, std::memory_order_relaxed);
    if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
  }
  inside_chunk = false;
}

bool ThreadPool::try_join(std::uint32_t job) noexcept {
  std::uint64_t gate = gate_.load(std::memory_order_relaxed);
  while ((gate & ~kInsideMask) == gate_of(job, true)) {
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire, std::memory_order_relaxed)) {
      return true;
    }
  }
  return false;
}

std::uint32_t ThreadPool::wait_for_job(std::uint32_t seen) noexcept {
  using Clock = std::chrono::steady_clock;
  const auto asleep_at = Clock::now() + std::chrono::microseconds(kSpinMicros);
  do {
    for (int i = 0; i < kPollsPerLook; ++i) {
      const std::uint32_t epoch = epoch_.load(std::memory_order_acquire);
      if (epoch != seen) return epoch;
      relax();
    }
  } while (Clock::now() < asleep_at);
  sleepers_.fetch_add(1);
  epoch_.wait(seen);
  sleepers_.fetch_sub(1);
  return epoch_.load(std::memory_order_acquire);
}

void ThreadPool::worker_loop(int self, std::uint32_t seen) {
  while (true) {
    seen = wait_for_job(seen);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (!try_join(seen)) continue;
    work_on_chunks(self);
    gate_.fetch_sub(1, std::memory_order_release);
  }
}

ThreadPool& shared_pool() {
  static auto* const pool =
      new ThreadPool(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads));
  return *pool;
}

int num_threads() { return shared_pool().size(); }

void wake_threads() { shared_pool().wake(); }

void set_num_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw InvalidArgument("threads must be 1 to " + std::to_string(kMaxThreads) + ", got " +
                          std::to_string(threads));
  }
  shared_pool().resize(threads);
}

}  // namespace airi::cpu
