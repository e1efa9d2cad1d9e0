#include "guard/dfa.h"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/ids.h"

namespace airi::guard {
namespace {

using PositionSet = std::vector<std::int32_t>;  // in order

struct HashPositions {
  std::size_t operator()(const PositionSet& set) const noexcept {
    std::uint64_t hash = 0x9E3779B97F4A7C15ULL;
    for (const std::int32_t position : set) {
      hash = (hash ^ static_cast<std::uint64_t>(position)) * 0xBF58476D1CE4E5B9ULL;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

// A position of one of the patterns, its edges by class of bytes.
struct GroupPosition {
  struct Edge {
    std::vector<std::uint8_t> classes;
    PositionSet to;
  };
  PatternId pattern{};
  bool holds = false;
  bool validated = false;
  std::vector<Edge> edges;
  ByteSet ends_before;
};

void put(std::string& out, std::uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>((value >> shift) & 0xFF));
}

}  // namespace

// Makes sets of positions states, breadth first.
class DfaBuilder {
 public:
  explicit DfaBuilder(std::span<const NumberedPattern> patterns, std::int32_t max_states)
      : patterns_(patterns), max_states_(max_states) {
    find_classes();
    for (const NumberedPattern& pattern : patterns) add_pattern(pattern);
  }

  std::optional<Dfa> build() {
    intern({});
    for (std::size_t before = 0; before < kNumContexts; ++before) {
      PositionSet set;
      for (std::size_t i = 0; i < patterns_.size(); ++i) {
        for (const std::int32_t start : patterns_[i].positions->starts[before])
          set.push_back(offsets_[i] + start);
      }
      dfa_.starts_[before] = intern(std::move(set));
    }
    for (std::size_t i = 0; i < sets_.size(); ++i) {
      if (std::ssize(sets_) > max_states_) return std::nullopt;
      expand(*sets_[i]);
    }
    dfa_.find_needs();
    return std::move(dfa_);
  }

 private:
  // Splits the bytes until every set of the patterns is a union of classes.
  void find_classes() {
    std::set<ByteSet> sets;
    for (const NumberedPattern& pattern : patterns_) {
      dfa_.patterns_.push_back(pattern.id);
      for (const Position& position : pattern.positions->positions) {
        sets.insert(position.ends_before);
        for (const Position::Edge& edge : position.edges) sets.insert(edge.bytes);
      }
    }
    std::array<std::uint8_t, 256>& class_of = dfa_.class_of_;
    std::size_t count = 1;
    for (const ByteSet& set : sets) {
      std::array<std::optional<std::uint8_t>, 256> split;  // by class: what its members in `set` become
      std::array<bool, 256> stays{};
      for (std::size_t b = 0; b < 256; ++b) stays[class_of[b]] |= !set.contains(static_cast<std::uint8_t>(b));
      for (std::size_t b = 0; b < 256; ++b) {
        if (!set.contains(static_cast<std::uint8_t>(b)) || !stays[class_of[b]]) continue;
        auto& into = split[class_of[b]];
        if (!into) into = static_cast<std::uint8_t>(count++);
        class_of[b] = *into;
      }
    }
    dfa_.num_classes_ = count;
    examples_.resize(count);
    for (std::size_t b = 256; b-- > 0;) examples_[class_of[b]] = static_cast<std::uint8_t>(b);
  }

  void add_pattern(const NumberedPattern& pattern) {
    const auto offset = static_cast<std::int32_t>(positions_.size());
    offsets_.push_back(offset);
    for (const Position& position : pattern.positions->positions) {
      GroupPosition own{.pattern = pattern.id,
                        .holds = pattern.pattern->holds,
                        .validated = pattern.pattern->validator != Validator::kNone,
                        .edges = {},
                        .ends_before = position.ends_before};
      for (const Position::Edge& edge : position.edges) {
        GroupPosition::Edge& copy = own.edges.emplace_back();
        for (std::size_t c = 0; c < examples_.size(); ++c) {
          if (edge.bytes.contains(examples_[c])) copy.classes.push_back(static_cast<std::uint8_t>(c));
        }
        for (const std::int32_t to : edge.to) copy.to.push_back(offset + to);
      }
      positions_.push_back(std::move(own));
    }
  }

  StateId intern(PositionSet set) {
    const auto [known, is_new] =
        ids_.try_emplace(std::move(set), StateId{static_cast<std::int32_t>(sets_.size())});
    if (is_new) {
      sets_.push_back(&known->first);
      describe(known->first);
    }
    return known->second;
  }

  // What a thread in this state is looked at for.
  void describe(const PositionSet& set) {
    StateFlags flags;
    std::vector<PatternId> ends;
    std::vector<PatternId> open;
    // Looks that between them let everything follow ask for nothing.
    std::map<PatternId, ByteSet> ends_before;
    for (const std::int32_t i : set) {
      const GroupPosition& position = positions_[static_cast<std::size_t>(i)];
      if (position.ends_before.is_empty()) continue;
      ByteSet& all = ends_before[position.pattern];
      all = all | position.ends_before;
    }
    for (const auto& [pattern, before] : ends_before) {
      if (before.is_all()) ends.push_back(pattern);
    }
    const auto ended = [&](PatternId pattern) { return std::ranges::binary_search(ends, pattern); };
    for (const std::int32_t i : set) {
      const GroupPosition& position = positions_[static_cast<std::size_t>(i)];
      if (!position.ends_before.is_empty()) {
        // Where a match has ended whatever follows, nothing is left to be told by the next byte.
        if (ended(position.pattern)) continue;
        flags.looks = true;
        dfa_.looks_.items.push_back({position.pattern, position.ends_before});
      }
      open.push_back(position.pattern);
      flags.holds = flags.holds || position.holds;
      flags.validated = flags.validated || position.validated;
    }
    std::ranges::sort(open);
    open.erase(std::ranges::unique(open).begin(), open.end());
    flags.ends = !ends.empty();
    flags.open = !open.empty();
    dfa_.flags_.push_back(flags);
    dfa_.ends_.items.insert(dfa_.ends_.items.end(), ends.begin(), ends.end());
    dfa_.open_.items.insert(dfa_.open_.items.end(), open.begin(), open.end());
    dfa_.ends_.close();
    dfa_.looks_.close();
    dfa_.open_.close();
  }

  void expand(const PositionSet& set) {
    std::vector<PositionSet> to(dfa_.num_classes_);
    for (const std::int32_t i : set) {
      for (const GroupPosition::Edge& edge : positions_[static_cast<std::size_t>(i)].edges) {
        for (const std::uint8_t c : edge.classes) to[c].insert(to[c].end(), edge.to.begin(), edge.to.end());
      }
    }
    for (PositionSet& next : to) {
      std::ranges::sort(next);
      next.erase(std::ranges::unique(next).begin(), next.end());
      dfa_.next_.push_back(intern(std::move(next)));
    }
  }

  std::span<const NumberedPattern> patterns_;
  std::int32_t max_states_;
  Dfa dfa_;
  std::vector<std::uint8_t> examples_;  // a byte of each class
  std::vector<std::int32_t> offsets_;   // by pattern: its first position in positions_
  std::vector<GroupPosition> positions_;
  std::unordered_map<PositionSet, StateId, HashPositions> ids_;
  std::vector<const PositionSet*> sets_;  // by state
};

std::optional<Dfa> Dfa::try_build(std::span<const NumberedPattern> patterns, std::int32_t max_states) {
  return DfaBuilder(patterns, max_states).build();
}

// What all ways to a match have in common, taken as everything until some way lacks it.
void Dfa::find_needs() {
  constexpr std::uint64_t kEverything = ~std::uint64_t{0};
  std::vector<std::uint64_t> marks(num_classes_);  // of what all bytes of a class share
  for (std::size_t c = 0; c < num_classes_; ++c) {
    marks[c] = kEverything;
    for (std::size_t b = 0; b < 256; ++b) {
      if (class_of_[b] == c) marks[c] &= byte_mark(static_cast<std::uint8_t>(b));
    }
  }
  needs_.assign(flags_.size(), kEverything);
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t state = flags_.size(); --state > 0;) {
      std::uint64_t needs = flags_[state].ends || flags_[state].looks ? 0 : kEverything;
      for (std::size_t c = 0; c < num_classes_ && needs != 0; ++c) {
        const StateId to = next_[state * num_classes_ + c];
        if (to != kDeadState) needs &= marks[c] | needs_[index(to)];
      }
      changed = changed || needs != needs_[state];
      needs_[state] = needs;
    }
  }
}

void Dfa::append_canonical(std::string& out) const {
  put(out, static_cast<std::uint32_t>(num_classes_));
  out.append(class_of_.begin(), class_of_.end());
  for (const StateId state : starts_) put(out, static_cast<std::uint32_t>(state));
  put(out, static_cast<std::uint32_t>(num_states()));
  for (const StateId state : next_) put(out, static_cast<std::uint32_t>(state));
  for (std::int32_t i = 0; i < num_states(); ++i) {
    const StateId state{i};
    put(out, static_cast<std::uint32_t>(ends(state).size()));
    for (const PatternId pattern : ends(state)) put(out, static_cast<std::uint32_t>(pattern));
    put(out, static_cast<std::uint32_t>(look_ends(state).size()));
    for (const LookEnd& end : look_ends(state)) {
      put(out, static_cast<std::uint32_t>(end.pattern));
      for (std::size_t b = 0; b < 256; ++b)
        out.push_back(end.before.contains(static_cast<std::uint8_t>(b)) ? '1' : '0');
      out.push_back(end.before.has_edge() ? '1' : '0');
    }
  }
}

}  // namespace airi::guard
