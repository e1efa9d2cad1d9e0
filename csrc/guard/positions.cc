#include "guard/positions.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/ids.h"
#include "guard/regex_parser.h"
#include "guard/thompson.h"

namespace airi::guard {
namespace {

using Kind = ThompsonState::Kind;

// A state that reads or accepts, and what the next byte must be in for looks on the way to it.
struct Item {
  ThompsonId state{};
  ByteSet ahead{};
  friend auto operator<=>(const Item&, const Item&) = default;
};

// Follows empty steps from states to positions.
class Builder {
 public:
  Builder(const Pattern& pattern, const Thompson& thompson, std::int32_t max_states)
      : pattern_(pattern), thompson_(thompson), max_states_(max_states) {
    find_contexts();
  }

  PatternPositions build() {
    std::vector<std::vector<std::int32_t>> starts;
    for (const std::uint8_t context : examples_) starts.push_back(follow(thompson_.start(), context));
    starts.push_back(follow(thompson_.start(), kTextStart));
    for (std::size_t i = 0; i < items_.size(); ++i) expand(i);
    PatternPositions result;
    result.positions = std::move(positions_);
    for (std::size_t b = 0; b < kTextStart; ++b) result.starts[b] = starts[context_of_[b]];
    result.starts[kTextStart] = starts.back();
    return result;
  }

 private:
  // Bytes that no look back tells apart share a context.
  void find_contexts() {
    std::vector<ByteSet> sets;
    for (const ThompsonState& state : thompson_.states) {
      if (state.kind == Kind::kLook) sets.push_back(state.before);
    }
    std::ranges::sort(sets);
    sets.erase(std::ranges::unique(sets).begin(), sets.end());
    std::map<std::vector<bool>, std::size_t> known;
    for (std::size_t b = 0; b < kTextStart; ++b) {
      std::vector<bool> inside;
      for (const ByteSet& set : sets) inside.push_back(set.contains(static_cast<std::uint8_t>(b)));
      const auto [context, is_new] = known.try_emplace(std::move(inside), known.size());
      if (is_new) {
        examples_.push_back(static_cast<std::uint8_t>(b));
        members_.emplace_back();
      }
      context_of_[b] = context->second;
      members_[context->second].add(static_cast<std::uint8_t>(b));
    }
  }

  // The positions that are reached from a state by reading nothing, after a byte (or kTextStart).
  std::vector<std::int32_t> follow(ThompsonId from, std::size_t before) {
    std::vector<Item> todo{{from, ByteSet::all()}};
    std::set<Item> seen;
    std::vector<std::int32_t> found;
    while (!todo.empty()) {
      const Item item = todo.back();
      todo.pop_back();
      if (!seen.insert(item).second) continue;
      const ThompsonState& state = thompson_.states[index(item.state)];
      if (state.kind == Kind::kRead || state.kind == Kind::kAccept) {
        add(item, state, found);
        continue;
      }
      ByteSet ahead = item.ahead;
      if (state.kind == Kind::kLook) {
        const bool passes = before == kTextStart ? state.before.has_edge()
                                                 : state.before.contains(static_cast<std::uint8_t>(before));
        ahead = passes ? ahead & state.bytes : ByteSet();
      }
      if (ahead.is_empty()) continue;
      for (const ThompsonId next : state.next) todo.push_back({next, ahead});
    }
    std::ranges::sort(found);
    found.erase(std::ranges::unique(found).begin(), found.end());
    return found;
  }

  void add(Item item, const ThompsonState& state, std::vector<std::int32_t>& found) {
    if (state.kind == Kind::kRead) {
      item.ahead = item.ahead & state.bytes;
      if (item.ahead.is_empty()) return;
    }
    const auto [known, is_new] = ids_.try_emplace(item, static_cast<std::int32_t>(items_.size()));
    if (is_new) {
      if (std::ssize(items_) >= max_states_) refuse();
      items_.push_back(item);
    }
    found.push_back(known->second);
  }
  [[noreturn]] void refuse() const {
    throw InvalidArgument("pattern '" + pattern_.name + "' takes more than " + std::to_string(max_states_) +
                          " positions");
  }

  void expand(std::size_t i) {
    const Item item = items_[i];
    const ThompsonState& state = thompson_.states[index(item.state)];
    Position position;
    if (state.kind == Kind::kAccept) {
      position.ends_before = item.ahead;
    } else {
      for (std::size_t context = 0; context < examples_.size(); ++context) {
        const ByteSet bytes = item.ahead & members_[context];
        if (bytes.is_empty()) continue;
        add_edge(position, bytes, after(state.next.front(), context));
      }
    }
    num_steps_ += std::ssize(position.edges);
    for (const Position::Edge& edge : position.edges) num_steps_ += std::ssize(edge.to);
    if (num_steps_ > std::int64_t{kStepsPerState} * max_states_) refuse();
    positions_.push_back(std::move(position));
  }

  // As follow(), remembered.
  const std::vector<std::int32_t>& after(ThompsonId state, std::size_t context) {
    const auto [known, is_new] = followed_.try_emplace({state, context});
    if (is_new) known->second = follow(state, examples_[context]);
    return known->second;
  }

  static void add_edge(Position& position, const ByteSet& bytes, const std::vector<std::int32_t>& to) {
    if (to.empty()) return;
    for (Position::Edge& edge : position.edges) {
      if (edge.to != to) continue;
      edge.bytes = edge.bytes | bytes;
      return;
    }
    position.edges.push_back({bytes, to});
  }

  static constexpr std::int32_t kStepsPerState = 64;

  const Pattern& pattern_;
  const Thompson& thompson_;
  std::int32_t max_states_;
  std::array<std::size_t, kTextStart> context_of_{};
  std::vector<std::uint8_t> examples_;  // a byte of each context
  std::vector<ByteSet> members_;        // all of them
  std::map<Item, std::int32_t> ids_;
  std::vector<Item> items_;
  std::map<std::pair<ThompsonId, std::size_t>, std::vector<std::int32_t>> followed_;
  std::vector<Position> positions_;
  std::int64_t num_steps_ = 0;
};

// Leaves out what no match can go through.
void trim(PatternPositions& pattern) {
  const std::size_t count = pattern.positions.size();
  std::vector<std::vector<std::int32_t>> from(count);
  std::vector<bool> is_open(count);
  std::vector<std::int32_t> todo;
  for (std::size_t i = 0; i < count; ++i) {
    for (const Position::Edge& edge : pattern.positions[i].edges) {
      for (const std::int32_t to : edge.to)
        from[static_cast<std::size_t>(to)].push_back(static_cast<std::int32_t>(i));
    }
    if (pattern.positions[i].ends_before.is_empty()) continue;
    is_open[i] = true;
    todo.push_back(static_cast<std::int32_t>(i));
  }
  while (!todo.empty()) {
    const auto i = static_cast<std::size_t>(todo.back());
    todo.pop_back();
    for (const std::int32_t before : from[i]) {
      if (is_open[static_cast<std::size_t>(before)]) continue;
      is_open[static_cast<std::size_t>(before)] = true;
      todo.push_back(before);
    }
  }
  const auto is_closed = [&](std::int32_t i) { return !is_open[static_cast<std::size_t>(i)]; };
  for (Position& position : pattern.positions) {
    for (Position::Edge& edge : position.edges) std::erase_if(edge.to, is_closed);
    std::erase_if(position.edges, [](const Position::Edge& edge) { return edge.to.empty(); });
  }
  for (auto& starts : pattern.starts) std::erase_if(starts, is_closed);
}

}  // namespace

PatternPositions build_positions(const Pattern& pattern, std::int32_t max_states) {
  const Node node = parse(pattern);
  if (pattern.validator != Validator::kNone && !max_length(node)) {
    throw InvalidArgument("pattern '" + pattern.name +
                          "' has a validator: its matches must have a largest length");
  }
  const Thompson thompson = build_thompson(pattern, node, max_states);
  PatternPositions result = Builder(pattern, thompson, max_states).build();
  trim(result);
  if (std::ranges::all_of(result.starts, [](const auto& starts) { return starts.empty(); })) {
    throw InvalidArgument("pattern '" + pattern.name + "' matches no text");
  }
  return result;
}

}  // namespace airi::guard
