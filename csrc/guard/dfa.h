#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guard/byte_set.h"
#include "guard/pattern.h"
#include "guard/positions.h"

namespace airi::guard {

// Where one thread, that is one start of a match, stands. kDeadState: no match can come of it.
enum class StateId : std::int32_t {};
inline constexpr StateId kDeadState{0};

// What a thread must be looked at for; most states ask for nothing.
struct StateFlags {
  bool ends : 1 = false;       // matches have ended here
  bool looks : 1 = false;      // matches may have ended here: the next byte tells
  bool open : 1 = false;       // more bytes can complete a match
  bool holds : 1 = false;      // of a pattern that holds
  bool validated : 1 = false;  // of a pattern with a validator
};

// One pattern on its way into a table. `positions` must outlive the building only.
struct NumberedPattern {
  PatternId id{};
  const Pattern* pattern = nullptr;
  const PatternPositions* positions = nullptr;
};

// The tables of some patterns at once, followed from one start: which patterns a text beginning there
// matches. Never looks for starts; that is the scanner's.
//
// Thread safety: immutable.
// Invariant: from every state but the dead one some text completes a match; there are at most `max_states`.
class Dfa {
 public:
  struct LookEnd {
    PatternId pattern{};
    ByteSet before{};  // a match has ended if one of these (or the edge) is next
  };

  // None where the patterns need more than `max_states` states.
  static std::optional<Dfa> try_build(std::span<const NumberedPattern> patterns, std::int32_t max_states);

  // Where a match that begins after the byte `before` (or kTextStart) stands.
  [[nodiscard]] StateId start(std::size_t before) const noexcept { return starts_[before]; }
  [[nodiscard]] StateId next(StateId state, std::uint8_t byte) const noexcept {
    return next_[static_cast<std::size_t>(state) * num_classes_ + class_of_[byte]];
  }
  [[nodiscard]] StateFlags flags(StateId state) const noexcept {
    return flags_[static_cast<std::size_t>(state)];
  }
  // Marks of bytes without which no match is completed from here; see byte_mark().
  [[nodiscard]] std::uint64_t needs(StateId state) const noexcept {
    return needs_[static_cast<std::size_t>(state)];
  }
  // Patterns of which a match has ended in this state, whatever follows.
  [[nodiscard]] std::span<const PatternId> ends(StateId state) const noexcept { return ends_.of(state); }
  [[nodiscard]] std::span<const LookEnd> look_ends(StateId state) const noexcept { return looks_.of(state); }
  // Patterns of which more bytes, or the end of the text, can complete a match.
  [[nodiscard]] std::span<const PatternId> open(StateId state) const noexcept { return open_.of(state); }
  [[nodiscard]] std::span<const PatternId> patterns() const noexcept { return patterns_; }
  [[nodiscard]] std::int32_t num_states() const noexcept { return static_cast<std::int32_t>(flags_.size()); }

  // All of the tables, the same on every machine.
  void append_canonical(std::string& out) const;

 private:
  friend class DfaBuilder;
  Dfa() = default;
  void find_needs();

  // A list for every state.
  template <class T>
  struct Lists {
    std::vector<std::uint32_t> begins{0};
    std::vector<T> items{};
    [[nodiscard]] std::span<const T> of(StateId state) const noexcept {
      const auto i = static_cast<std::size_t>(state);
      return {items.data() + begins[i], begins[i + 1] - begins[i]};
    }
    void close() { begins.push_back(static_cast<std::uint32_t>(items.size())); }
  };

  std::array<std::uint8_t, 256> class_of_{};  // bytes that no position tells apart share a class
  std::size_t num_classes_ = 0;
  std::array<StateId, kNumContexts> starts_{};
  std::vector<StateId> next_;  // [state][class]
  std::vector<StateFlags> flags_;
  std::vector<std::uint64_t> needs_;
  Lists<PatternId> ends_;
  Lists<LookEnd> looks_;
  Lists<PatternId> open_;
  std::vector<PatternId> patterns_;
};

}  // namespace airi::guard
