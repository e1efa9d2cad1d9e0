// The thread pool: every chunk runs once, nobody touches a job after it ended, exceptions
// come back, and callers on several threads take turns. Meant to run under TSan as well.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "cpu/thread_pool.h"

namespace airi::cpu {
namespace {

void every_chunk_runs_exactly_once() {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const std::int64_t chunks : {0, 1, 2, 7, 64, 1000}) {
      std::vector<int> runs(static_cast<std::size_t>(chunks));  // plain: TSan sees double claims
      for (int repeat = 0; repeat < 50; ++repeat) {
        pool.parallel_for(chunks, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
      }
      for (const int count : runs) AIRI_CHECK(count == 50) << "threads " << threads << " chunks " << chunks;
    }
  }
}

void results_are_visible_to_the_caller_and_to_the_next_job() {
  ThreadPool pool(4);
  std::vector<std::int64_t> values(257);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    pool.parallel_for(257, [&](std::int64_t i) { values[static_cast<std::size_t>(i)] += i; });
    const std::int64_t expected = 256 * (repeat + 1);
    AIRI_CHECK(values.back() == expected) << values.back();
  }
}

// Two chunks that wait for each other end only if two threads run them. The second thread may
// come late, but it must come.
void run_chunks_that_meet(ThreadPool& pool) {
  std::atomic<bool> met{false};
  std::atomic<int> inside{0};
  pool.parallel_for(2, [&](std::int64_t) {
    if (inside.fetch_add(1) == 1) met.store(true);
    while (!met.load()) std::this_thread::yield();
  });
  AIRI_CHECK(met.load());
}

void workers_that_fell_asleep_wake_up() {
  ThreadPool pool(2);
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::this_thread::sleep_for(std::chrono::microseconds(10 * ThreadPool::kSpinMicros));
    run_chunks_that_meet(pool);
  }
}

void an_exception_reaches_the_caller_and_the_pool_goes_on() {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 200; ++repeat) {
      std::string message;
      try {
        pool.parallel_for(100, [&](std::int64_t i) {
          if (i % 10 == 3) throw std::runtime_error("chunk " + std::to_string(i % 10));
        });
      } catch (const std::runtime_error& e) {
        message = e.what();
      }
      AIRI_CHECK(message == "chunk 3") << message;
    }
    std::atomic<int> count{0};
    pool.parallel_for(100, [&](std::int64_t) { count.fetch_add(1); });
    AIRI_CHECK(count.load() == 100) << count.load();
  }
}

void a_call_from_inside_a_chunk_runs_inline() {
  ThreadPool pool(3);
  std::atomic<int> count{0};
  pool.parallel_for(10, [&](std::int64_t) {
    const auto self = std::this_thread::get_id();
    pool.parallel_for(10, [&](std::int64_t) {
      AIRI_CHECK(std::this_thread::get_id() == self);
      count.fetch_add(1);
    });
  });
  AIRI_CHECK(count.load() == 100) << count.load();
}

void callers_on_several_threads_take_turns() {
  ThreadPool pool(3);
  std::vector<std::thread> callers;
  std::vector<std::int64_t> sums(4);
  for (std::size_t c = 0; c < sums.size(); ++c) {
    callers.emplace_back([&, c] {
      std::vector<std::int64_t> mine(33);
      for (int repeat = 0; repeat < 500; ++repeat) {
        pool.parallel_for(33, [&](std::int64_t i) { mine[static_cast<std::size_t>(i)] += i; });
      }
      for (const std::int64_t value : mine) sums[c] += value;
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const std::int64_t sum : sums) AIRI_CHECK(sum == std::int64_t{500} * 33 * 16) << sum;
}

void threads_that_are_woken_for_nothing_miss_no_job() {
  ThreadPool pool(2);
  std::atomic<bool> done{false};
  std::thread waker([&] {
    while (!done.load()) {
      pool.wake();
      std::this_thread::sleep_for(std::chrono::microseconds(ThreadPool::kSpinMicros));
    }
  });
  for (int repeat = 0; repeat < 300; ++repeat) {
    // Long enough that workers fall asleep between jobs, unless they are woken.
    std::this_thread::sleep_for(std::chrono::microseconds(2 * ThreadPool::kSpinMicros));
    run_chunks_that_meet(pool);
  }
  done.store(true);
  waker.join();
}

void resizing_between_jobs_changes_the_threads() {
  ThreadPool pool(1);
  std::vector<int> runs(100);
  for (const int threads : {4, 1, 2, 8, 3}) {
    pool.resize(threads);
    AIRI_CHECK(pool.size() == threads);
    pool.parallel_for(100, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
  }
  for (const int count : runs) AIRI_CHECK(count == 5) << count;
}

}  // namespace
}  // namespace airi::cpu

int main() {
  using namespace airi::cpu;
  every_chunk_runs_exactly_once();
  results_are_visible_to_the_caller_and_to_the_next_job();
  workers_that_fell_asleep_wake_up();
  an_exception_reaches_the_caller_and_the_pool_goes_on();
  a_call_from_inside_a_chunk_runs_inline();
  callers_on_several_threads_take_turns();
  threads_that_are_woken_for_nothing_miss_no_job();
  resizing_between_jobs_changes_the_threads();
  std::cout << "ok\n";
  return 0;
}
