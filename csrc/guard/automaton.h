#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "guard/dfa.h"
#include "guard/pattern.h"

namespace airi::guard {

struct AutomatonOptions {
  std::int32_t max_states = 1 << 15;  // of one group
  std::int32_t max_groups = 64;
};

// Many patterns as tables, for scanners and token masks. Knows nothing of any text.
//
// Patterns whose tables would multiply are kept apart, in groups; every group costs each byte a look-up. A
// pattern that exceeds `max_states` alone is refused, as is what takes more than `max_groups`.
//
// Thread safety: immutable; one automaton serves any number of scanners and masks.
// Invariant: every pattern is in exactly one group.
class Automaton {
 public:
  // Throws InvalidArgument in one line that names the pattern at fault and the numbers.
  explicit Automaton(std::vector<Pattern> patterns, const AutomatonOptions& options = {});

  [[nodiscard]] std::span<const Pattern> patterns() const noexcept { return patterns_; }
  [[nodiscard]] std::span<const Dfa> groups() const noexcept { return groups_; }
  // The pattern's index in groups().
  [[nodiscard]] std::size_t group_of(PatternId pattern) const noexcept {
    return group_of_[static_cast<std::size_t>(pattern)];
  }
  [[nodiscard]] std::int64_t num_states() const noexcept;
  [[nodiscard]] bool has_validators() const noexcept { return has_validators_; }

  // All that matching depends on, in one string of bytes: the same for the same patterns on every machine. A
  // digest of it names the automaton.
  [[nodiscard]] std::string canonical() const;

 private:
  std::vector<Pattern> patterns_;
  std::vector<Dfa> groups_;
  std::vector<std::size_t> group_of_;
  bool has_validators_ = false;
};

}  // namespace airi::guard
