#include "guard/automaton.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/ids.h"

namespace airi::guard {
namespace {

// How the tables are made and read; digests of automata differ where it does.
constexpr std::string_view kFormat = "airi guard automaton 1\n";

// All patterns in one group if that fits, else each half by itself.
void build_groups(std::span<const NumberedPattern> patterns, const AutomatonOptions& options,
                  std::vector<Dfa>& out) {
  if (auto dfa = Dfa::try_build(patterns, options.max_states)) {
    out.push_back(std::move(*dfa));
    return;
  }
  const std::string& name = patterns.front().pattern->name;
  if (patterns.size() == 1) {
    throw InvalidArgument("pattern '" + name + "' takes more than " + std::to_string(options.max_states) +
                          " states");
  }
  const std::size_t half = patterns.size() / 2;
  build_groups(patterns.first(half), options, out);
  build_groups(patterns.subspan(half), options, out);
  if (std::ssize(out) > options.max_groups) {
    throw InvalidArgument("the patterns take more than " + std::to_string(options.max_groups) +
                          " groups of " + std::to_string(options.max_states) + " states, at pattern '" +
                          name + "'");
  }
}

}  // namespace

Automaton::Automaton(std::vector<Pattern> patterns, const AutomatonOptions& options)
    : patterns_(std::move(patterns)), group_of_(patterns_.size()) {
  if (patterns_.empty()) throw InvalidArgument("an automaton must have at least one pattern");
  if (options.max_states < 2) {
    throw InvalidArgument("max_states must be at least 2, got " + std::to_string(options.max_states));
  }
  if (options.max_groups < 1) {
    throw InvalidArgument("max_groups must be at least 1, got " + std::to_string(options.max_groups));
  }
  std::vector<PatternPositions> positions;
  positions.reserve(patterns_.size());
  std::vector<NumberedPattern> numbered;
  for (const Pattern& pattern : patterns_) {
    positions.push_back(build_positions(pattern, options.max_states));
    numbered.push_back({PatternId{static_cast<std::int32_t>(numbered.size())}, &pattern, &positions.back()});
    has_validators_ = has_validators_ || pattern.validator != Validator::kNone;
  }
  build_groups(numbered, options, groups_);
  for (std::size_t group = 0; group < groups_.size(); ++group) {
    for (const PatternId pattern : groups_[group].patterns()) group_of_[index(pattern)] = group;
  }
}

std::int64_t Automaton::num_states() const noexcept {
  std::int64_t count = 0;
  for (const Dfa& group : groups_) count += group.num_states();
  return count;
}

std::string Automaton::canonical() const {
  std::string out(kFormat);
  for (const Pattern& pattern : patterns_) {
    out.push_back(static_cast<char>('0' + raw(pattern.validator)));
  }
  out.push_back('\n');
  for (const Dfa& group : groups_) group.append_canonical(out);
  return out;
}

}  // namespace airi::guard
