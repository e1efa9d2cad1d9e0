#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "guard/automaton.h"

namespace airi::guard {

// Bytes [start, end) of the text, counted from its first.
struct Match {
  PatternId pattern{};
  std::int64_t start = 0;
  std::int64_t end = 0;
  friend auto operator<=>(const Match&, const Match&) = default;
};

struct ScannerOptions {
  // Threads of one group, more than after the last search, at which equal ones are looked for. Fewer cost
  // less than the search: 16 are stepped in some 50 ns.
  std::size_t merge_at = 16;
};

// Finds matches in a text that comes in pieces. Never keeps the text, but for what validators may still want
// to see.
//
// What a match is, for each pattern by itself. A candidate is a span [start, end) of the text that the whole
// pattern matches, its looks seeing the bytes right before and right after the span, or the edges of the
// text, and that its validator passes. From the left: the match is the candidate with the smallest start, and
// of those the longest; the next one is sought among the candidates that start at or after its end. So no
// candidate hides behind a longer span that its validator refuses, matches of one pattern do not overlap, and
// those of two patterns may.
//
// Every byte is taken by itself: what is found, in which order and after which byte does not depend on the
// pieces. A match is reported with the byte that decides it, that is as soon as no text that may follow could
// change it; matches of one pattern in the order of their starts.
//
// open_start() is the smallest start of a candidate that is not reported yet and that some text, following
// the bytes fed so far, would complete or has completed already; validators are taken to pass what they have
// not seen.
//
// Thread safety: none; scanners of one automaton are independent.
// Invariant: threads of a group stand in the order of their starts, and each is open.
class Scanner {
 public:
  explicit Scanner(std::shared_ptr<const Automaton> automaton, const ScannerOptions& options = {});
  Scanner(const Scanner&) = delete;
  Scanner& operator=(const Scanner&) = delete;

  // Appends the matches that these bytes decide to `out`. REQUIRES: finish() was not called since the last
  // reset(). O(bytes x open threads), which are at most the states of the automaton but for patterns with
  // validators.
  void feed(std::span<const std::uint8_t> bytes, std::vector<Match>& out);
  // The text ends here: appends what that decides. Only reset() may follow.
  void finish(std::vector<Match>& out);
  // Begins another text.
  void reset();

  // None where nothing is open; never more than position().
  [[nodiscard]] std::optional<std::int64_t> open_start() const noexcept;
  // Bytes fed so far.
  [[nodiscard]] std::int64_t position() const noexcept { return position_; }
  // Threads at present, for tests and figures.
  [[nodiscard]] std::size_t num_threads() const noexcept;

  // Throws InvariantError naming the first broken invariant. O(threads).
  void check_invariants() const;

 private:
  struct Thread {
    std::int64_t start;
    StateId state;
  };
  // The longest match that a start has had so far.
  struct Pending {
    std::int64_t start;
    std::int64_t end;
  };
  struct Group {
    const Dfa* dfa;
    std::vector<Thread> threads;
    std::size_t merge_at;  // number of threads beyond which equal states are looked for
  };

  StateId advance(const Dfa& dfa, const Thread& thread, std::uint8_t byte);
  void step(Group& group, std::uint8_t byte);
  void note(PatternId pattern, std::int64_t start, std::int64_t end);
  void note_ends(const Dfa& dfa, const Thread& thread);
  void decide(std::vector<Match>& out);
  bool decide(PatternId pattern, std::vector<Match>& out);
  [[nodiscard]] bool may_match(const Dfa& dfa, const Thread& thread) const noexcept;
  void drop_closed();
  void merge(Group& group);
  [[nodiscard]] bool is_covered(const Dfa& dfa, const Thread& earlier, const Thread& later) const;
  void remember(std::span<const std::uint8_t> bytes);
  void forget();

  // Immutable after construction.
  std::shared_ptr<const Automaton> automaton_;
  std::size_t merge_at_;

  std::vector<Group> groups_;
  std::vector<std::vector<Pending>> pending_;  // by pattern, in the order of starts
  std::vector<PatternId> undecided_;           // patterns that have any
  std::vector<std::int64_t> floors_;           // by pattern: where its last match ended
  std::size_t before_ = kTextStart;
  std::int64_t position_ = 0;
  bool finished_ = false;
  // The last bytes, back to the first thread that a validator may ask about. Empty without validators.
  std::vector<std::uint8_t> recent_;
  std::int64_t recent_start_ = 0;
};

}  // namespace airi::guard
