#include "guard/thompson.h"

#include <map>
#include <string>
#include <tuple>

#include "base/check.h"
#include "base/ids.h"
#include "guard/code_ranges.h"

namespace airi::guard {
namespace {

using Kind = ThompsonState::Kind;

// Builds from the end to the beginning, so that what follows always exists already.
class Builder {
 public:
  Builder(const Pattern& pattern, std::int32_t max_states) : pattern_(pattern), max_states_(max_states) {
    add({.kind = Kind::kAccept});
  }

  // The state from which `node`, and then what begins at `next`, is matched.
  ThompsonId build(const Node& node, ThompsonId next) {
    switch (node.kind) {
      case NodeKind::kCharacter:
        return build_character(node, next);
      case NodeKind::kByte:
        return add({.kind = Kind::kRead, .bytes = node.bytes, .next = {next}});
      case NodeKind::kLook:
        return add({.kind = Kind::kLook, .before = node.before, .bytes = node.bytes, .next = {next}});
      case NodeKind::kSequence:
        for (std::size_t i = node.parts.size(); i-- > 0;) next = build(node.parts[i], next);
        return next;
      case NodeKind::kChoice:
        return build_choice(node, next);
      case NodeKind::kRepeat:
        return build_repeat(node, next);
    }
    return next;
  }

  // Makes the state that everything begins at the last one.
  Thompson finish(ThompsonId start) {
    add({.kind = Kind::kSplit, .next = {start}});
    return {std::move(states_)};
  }

 private:
  ThompsonId add(ThompsonState state) {
    if (std::ssize(states_) >= max_states_) {
      throw InvalidArgument("pattern '" + pattern_.name + "' takes more than " + std::to_string(max_states_) +
                            " positions: its counts multiply to too much");
    }
    states_.push_back(std::move(state));
    return ThompsonId{static_cast<std::int32_t>(states_.size()) - 1};
  }

  // Sequences that end alike share their ends; leading bytes that go on alike share a state.
  ThompsonId build_character(const Node& node, ThompsonId next) {
    std::map<std::tuple<std::uint8_t, std::uint8_t, ThompsonId>, ThompsonId> tails;
    std::map<ThompsonId, ByteSet> leads;
    for (const ByteSequence& sequence : byte_sequences(node.ranges)) {
      ThompsonId then = next;
      for (std::size_t i = sequence.length; i-- > 1;) {
        const auto [first, last] = sequence.ranges[i];
        const auto [known, is_new] = tails.try_emplace({first, last, then});
        if (is_new)
          known->second = add({.kind = Kind::kRead, .bytes = ByteSet::range(first, last), .next = {then}});
        then = known->second;
      }
      leads[then] = leads[then] | ByteSet::range(sequence.ranges[0].first, sequence.ranges[0].last);
    }
    std::vector<ThompsonId> starts;
    for (const auto& [then, bytes] : leads)
      starts.push_back(add({.kind = Kind::kRead, .bytes = bytes, .next = {then}}));
    return starts.size() == 1 ? starts.front() : add({.kind = Kind::kSplit, .next = std::move(starts)});
  }

  ThompsonId build_choice(const Node& node, ThompsonId next) {
    std::vector<ThompsonId> starts;
    for (const Node& part : node.parts) starts.push_back(build(part, next));
    return add({.kind = Kind::kSplit, .next = std::move(starts)});
  }

  ThompsonId build_repeat(const Node& node, ThompsonId next) {
    const Node& part = node.parts.front();
    ThompsonId start = next;
    if (!node.most) {
      start = add({.kind = Kind::kSplit, .next = {next}});
      const ThompsonId again = build(part, start);
      states_[index(start)].next.push_back(again);
    } else {
      for (std::int32_t i = node.least; i < *node.most; ++i) {
        start = add({.kind = Kind::kSplit, .next = {build(part, start), next}});
      }
    }
    for (std::int32_t i = 0; i < node.least; ++i) start = build(part, start);
    return start;
  }

  const Pattern& pattern_;
  std::int32_t max_states_;
  std::vector<ThompsonState> states_;
};

}  // namespace

Thompson build_thompson(const Pattern& pattern, const Node& node, std::int32_t max_states) {
  Builder builder(pattern, max_states);
  return builder.finish(builder.build(node, ThompsonId{0}));
}

}  // namespace airi::guard
