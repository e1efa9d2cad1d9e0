#include "sim/turns.h"

#include <algorithm>
#include <utility>

#include "base/relax.h"

namespace airi {
namespace {

// Looks at another's turn before the core is offered to others, tens of microseconds; and after that, some
// milliseconds, time enough for the system to move threads that share a core apart.
constexpr int kSpins = 1024;
constexpr int kYields = 4096;

// A wait that was too long strains as much as kPatience turns relieve; at kMostStrain the caller goes on
// alone. A thread that wakes up shares its waker's core at first, so that some long waits come in a row.
constexpr std::int32_t kPatience = 8;
constexpr std::int32_t kMostStrain = 1024;

// Turns alone; twice as many each time that the next ones come soon.
constexpr std::int32_t kLeastAlone = 256;
constexpr std::int32_t kMostAlone = 8192;
constexpr std::int32_t kSoon = 4096;

}  // namespace

Turns::Turns(std::size_t members, Share share, Ahead ahead)
    : share_(std::move(share)), ahead_(std::move(ahead)), members_(members), next_alone_(kLeastAlone) {
  try {
    for (std::size_t i = 1; i < members; ++i) threads_.emplace_back([this, i] { follow(i); });
  } catch (...) {
    end();
    throw;
  }
}

Turns::~Turns() { end(); }

void Turns::end() noexcept {
  over_ = true;
  begun_.fetch_add(1, std::memory_order_release);
  begun_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Turns::take() {
  if (alone_ == 0) {
    take_together();
  } else {
    --alone_;
    for (std::size_t i = 0; i < members_.size(); ++i) do_share(i);
  }
  for (const Member& member : members_) {
    if (member.failure) std::rethrow_exception(member.failure);
  }
}

void Turns::take_together() {
  rests_ = strain_ >= kMostStrain;
  const std::uint32_t turn = begun_.load(std::memory_order_relaxed) + 1;
  begun_.store(turn, std::memory_order_release);
  begun_.notify_all();
  do_share(0);
  bool was_long = false;
  for (std::size_t i = 1; i < members_.size(); ++i) {
    Wait wait = await(members_[i].done, turn, 0, rests_);
    was_long |= wait.was_long;
    if (wait.failure) members_[0].failure = std::move(wait.failure);
  }
  strain_ = was_long ? strain_ + kPatience : std::max(strain_ - 1, 0);
  if (++together_ == kSoon) next_alone_ = kLeastAlone;
  if (!rests_) return;
  alone_ = next_alone_;
  next_alone_ = std::min(2 * next_alone_, kMostAlone);
  strain_ = together_ = 0;
}

void Turns::follow(std::size_t member) noexcept {
  Member& self = members_[member];
  bool rests = false;
  for (std::uint32_t turn = 1;; ++turn) {
    Wait wait = await(begun_, turn, member, rests);
    if (over_) return;
    rests = rests_;
    if (wait.failure) self.failure = std::move(wait.failure);
    do_share(member);
    self.done.store(turn, std::memory_order_release);
    self.done.notify_one();
  }
}

Turns::Wait Turns::await(const std::atomic<std::uint32_t>& turns, std::uint32_t wanted, std::size_t member,
                         bool rests) noexcept {
  Wait wait;
  bool may_work = !rests;
  int looks = 0;
  for (std::uint32_t now = turns.load(std::memory_order_acquire); now != wanted;
       now = turns.load(std::memory_order_acquire)) {
    if (may_work) {
      try {
        may_work = ahead_(member);
      } catch (...) {
        wait.failure = std::current_exception();
        may_work = false;
      }
    } else if (!rests && looks < kSpins) {
      ++looks;
      relax();
    } else if (!rests && looks < kSpins + kYields) {
      ++looks;
      wait.was_long = true;
      std::this_thread::yield();
    } else {
      wait.was_long = true;
      turns.wait(now, std::memory_order_acquire);
    }
  }
  return wait;
}

void Turns::do_share(std::size_t member) noexcept {
  std::exception_ptr& failure = members_[member].failure;
  try {
    if (!failure) share_(member);
  } catch (...) {
    failure = std::current_exception();
  }
}

}  // namespace airi
