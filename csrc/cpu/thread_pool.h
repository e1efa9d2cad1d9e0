#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <vector>

namespace airi::cpu {

// Runs the chunks of one job at a time on the calling thread and sleeping-or-spinning
// workers. Each thread owns a contiguous run of the chunks, the same one in jobs of the same
// size, and steals from the end of others' runs when its own is done: neighbours share caches
// and prefetches, yet nobody waits for a thread that was interrupted. Never decides what a
// chunk computes: a result may depend on the chunk's number only, not on who runs it.
//
// A worker that is not running when a job starts may miss it; the caller never waits for
// it, only for chunks that were claimed. Workers spin for kSpinMicros after a job, then sleep.
//
// Thread safety: parallel_for may be called from any thread; jobs of two callers run one
// after the other. A call from inside a chunk runs inline. resize as parallel_for.
// Invariant: when parallel_for returns, no worker touches the job any more.
class ThreadPool {
 public:
  static constexpr int kSpinMicros = 60;

  // `threads` counts the caller: ThreadPool(1) has no worker. Starts fewer where the system
  // grants no more, size() says how many. REQUIRES threads >= 1.
  explicit ThreadPool(int threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  [[nodiscard]] int size() const noexcept { return size_.load(std::memory_order_relaxed); }

  // Changes the number of threads; waits for a running job. REQUIRES not inside a chunk.
  void resize(int threads);

  // Has workers that sleep look for jobs again, for who is about to bring one: they are awake when it comes.
  void wake() noexcept;

  // Calls body(chunk) once for each chunk in [0, chunks). Rethrows the first exception
  // of a chunk after all claimed chunks ended; chunks not yet claimed are then skipped.
  // A few microseconds when the workers spin, tens when they sleep. Never allocates.
  // REQUIRES chunks < 2^32.
  template <class Body>
  void parallel_for(std::int64_t chunks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(chunks, const_cast<void*>(static_cast<const void*>(std::addressof(body))),
        [](void* context, std::int64_t chunk) { (*static_cast<Plain*>(context))(chunk); });
  }

 private:
  // [begin, end) in the lower and upper half: the owner takes from the front, thieves from
  // the back.
  struct alignas(64) Run {
    std::atomic<std::uint64_t> span{0};
    [[nodiscard]] std::optional<std::int64_t> take_front() noexcept;
    [[nodiscard]] std::optional<std::int64_t> take_back() noexcept;
  };
  using Call = void (*)(void* context, std::int64_t chunk);

  void run(std::int64_t chunks, void* context, Call call);
  void work_on_chunks(int self) noexcept;
  void start(int threads);
  void stop() noexcept;
  void worker_loop(int self, std::uint32_t seen);
  [[nodiscard]] bool try_join(std::uint32_t job) noexcept;
  [[nodiscard]] std::uint32_t wait_for_job(std::uint32_t seen) noexcept;

  std::mutex mutex_;  // held by whoever runs a job, wakes or resizes
  std::atomic<int> size_{1};
  std::vector<std::thread> workers_;
  std::atomic<bool> stopping_{false};

  // The job. Written by run() while no worker is inside, read by workers that joined.
  Call call_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};

  // The job's number in the upper half, then kOpen, then how many workers are inside.
  alignas(64) std::atomic<std::uint64_t> gate_{0};
  // One run of unclaimed chunks per thread.
  std::vector<Run> runs_;
  // The number of the latest job, or of the latest call to wake() or stop(): what workers wait on.
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  std::atomic<int> sleepers_{0};
};

// The pool that every kernel shares. Never destroyed: joining threads while a process
// exits can hang. Starts with as many threads as the process may run on.
[[nodiscard]] ThreadPool& shared_pool();

[[nodiscard]] int num_threads();

// ThreadPool::wake for the shared pool.
void wake_threads();

// Throws InvalidArgument unless 1 <= threads <= 1024.
void set_num_threads(int threads);

}  // namespace airi::cpu
