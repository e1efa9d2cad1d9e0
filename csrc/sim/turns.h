#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

namespace airi {

// Threads that work in turns: the caller, who is member 0, and one for each other member. In a turn every
// member's share is done, and the turn has ended when all are. Who is done earlier works ahead until the next
// turn, then spins for a moment, then sleeps. The machine may be others', too: once the caller had to sleep,
// it does all shares itself for some turns, while the others sleep. What a share does must not depend on the
// thread.
//
// Thread safety: one thread makes, uses and destroys it.
// Invariant: what the caller writes between turns is seen by all shares of the next one, and what shares
// write by the caller after it. Whoever works ahead sees neither: it keeps to what is its member's alone.
class Turns {
 public:
  using Share = std::function<void(std::size_t member)>;
  // Does a little of what need not wait for the next turn. Returns whether there was anything.
  using Ahead = std::function<bool(std::size_t member)>;

  // REQUIRES: members >= 1.
  Turns(std::size_t members, Share share, Ahead ahead);
  ~Turns();
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  // One turn. Rethrows what a member threw in it, or ahead of it; none is to be taken after that.
  // A microsecond besides the work where each member has a core.
  void take();

 private:
  struct alignas(64) Member {
    std::atomic<std::uint32_t> done{0};  // turns
    std::exception_ptr failure;          // in them, or ahead of them
  };

  struct Wait {
    bool was_long = false;
    std::exception_ptr failure;  // of work ahead
  };

  void take_together();
  void follow(std::size_t member) noexcept;
  // Until `turns` is `wanted`: works ahead, unless it rests, and spins, then sleeps.
  Wait await(const std::atomic<std::uint32_t>& turns, std::uint32_t wanted, std::size_t member,
             bool rests) noexcept;
  void do_share(std::size_t member) noexcept;
  void end() noexcept;

  // Immutable after construction.
  Share share_;
  Ahead ahead_;

  alignas(64) std::atomic<std::uint32_t> begun_{0};  // turns together
  // Written by the caller before a turn, read by the others in it.
  bool rests_ = false;  // nobody works ahead of the next turn
  bool over_ = false;

  std::vector<Member> members_;
  std::vector<std::thread> threads_;

  // Only the caller uses them. All but the first count turns.
  std::int32_t strain_ = 0;      // of long waits
  std::int32_t alone_ = 0;       // still to be done alone
  std::int32_t next_alone_ = 0;  // when there is too much of it
  std::int32_t together_ = 0;    // since the others woke up
};

}  // namespace airi
