#include "guard/scanner.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/ids.h"
#include "guard/validators.h"

namespace airi::guard {
namespace {

// Bytes beyond what validators want that are kept before they are given up.
constexpr std::size_t kForgetAt = 4096;

}  // namespace

Scanner::Scanner(std::shared_ptr<const Automaton> automaton, const ScannerOptions& options)
    : automaton_(std::move(automaton)), merge_at_(options.merge_at) {
  for (const Dfa& dfa : automaton_->groups()) groups_.push_back({&dfa, {}, merge_at_});
  pending_.resize(automaton_->patterns().size());
  floors_.resize(automaton_->patterns().size());
}

void Scanner::reset() {
  for (Group& group : groups_) {
    group.threads.clear();
    group.merge_at = merge_at_;
  }
  for (auto& pending : pending_) pending.clear();
  undecided_.clear();
  std::ranges::fill(floors_, 0);
  before_ = kTextStart;
  position_ = 0;
  finished_ = false;
  recent_.clear();
  recent_start_ = 0;
}

void Scanner::feed(std::span<const std::uint8_t> bytes, std::vector<Match>& out) {
  if (finished_) throw InvalidArgument("the text has ended; reset() begins another");
  if (automaton_->has_validators()) remember(bytes);
  for (const std::uint8_t byte : bytes) {
    for (Group& group : groups_) step(group, byte);
    before_ = byte;
    ++position_;
    if (!undecided_.empty()) decide(out);
  }
  if (automaton_->has_validators()) forget();
}

// Where a thread stands after this byte, its matches noted; kDeadState where nothing more can come of it.
inline StateId Scanner::advance(const Dfa& dfa, const Thread& thread, std::uint8_t byte) {
  const StateId state = dfa.next(thread.state, byte);
  if (state == kDeadState) return kDeadState;
  const StateFlags flags = dfa.flags(state);
  if (flags.ends) {
    for (const PatternId pattern : dfa.ends(state)) note(pattern, thread.start, position_ + 1);
  }
  return flags.open ? state : kDeadState;
}

// Moves every thread by one byte, and begins one.
inline void Scanner::step(Group& group, std::uint8_t byte) {
  const Dfa& dfa = *group.dfa;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < group.threads.size(); ++i) {
    const Thread thread = group.threads[i];
    if (dfa.flags(thread.state).looks) {
      for (const Dfa::LookEnd& end : dfa.look_ends(thread.state)) {
        if (end.before.contains(byte)) note(end.pattern, thread.start, position_);
      }
    }
    const StateId state = advance(dfa, thread, byte);
    if (state != kDeadState) group.threads[kept++] = {thread.start, state};
  }
  group.threads.resize(kept);
  const StateId state = advance(dfa, {position_, dfa.start(before_)}, byte);
  if (state != kDeadState) group.threads.push_back({position_, state});
  if (group.threads.size() > group.merge_at) merge(group);
}

// A candidate: kept unless one that is longer is, or its start lies within a match already.
void Scanner::note(PatternId pattern, std::int64_t start, std::int64_t end) {
  if (start < floors_[index(pattern)]) return;
  const Validator validator = automaton_->patterns()[index(pattern)].validator;
  if (validator != Validator::kNone) {
    AIRI_DCHECK(start >= recent_start_) << "bytes of an open match were forgotten";
    const auto begin = static_cast<std::size_t>(start - recent_start_);
    if (!passes(validator, std::span(recent_).subspan(begin, static_cast<std::size_t>(end - start)))) return;
  }
  std::vector<Pending>& pending = pending_[index(pattern)];
  if (pending.empty()) undecided_.push_back(pattern);
  const auto place = std::ranges::lower_bound(pending, start, {}, &Pending::start);
  if (place != pending.end() && place->start == start) {
    place->end = std::max(place->end, end);
  } else {
    pending.insert(place, {start, end});
  }
}

// Reports what no open thread can change any more.
void Scanner::decide(std::vector<Match>& out) {
  bool moved = false;
  for (const PatternId pattern : undecided_) moved = decide(pattern, out) || moved;
  if (!moved) return;
  std::erase_if(undecided_, [&](PatternId pattern) { return pending_[index(pattern)].empty(); });
  drop_closed();
}

bool Scanner::decide(PatternId pattern, std::vector<Match>& out) {
  std::vector<Pending>& pending = pending_[index(pattern)];
  std::int64_t& floor = floors_[index(pattern)];
  const Group& group = groups_[automaton_->group_of(pattern)];
  bool moved = false;
  while (!pending.empty()) {
    const auto first = std::ranges::find_if(group.threads, [&](const Thread& thread) {
      return thread.start >= floor && std::ranges::binary_search(group.dfa->open(thread.state), pattern);
    });
    if (first != group.threads.end() && first->start <= pending.front().start) return moved;
    const Pending match = pending.front();
    out.push_back({pattern, match.start, match.end});
    floor = match.end;
    const auto next = std::ranges::lower_bound(pending, floor, {}, &Pending::start);
    pending.erase(pending.begin(), next);
    moved = true;
  }
  return moved;
}

bool Scanner::may_match(const Dfa& dfa, const Thread& thread) const noexcept {
  return std::ranges::any_of(dfa.open(thread.state),
                             [&](PatternId pattern) { return thread.start >= floors_[index(pattern)]; });
}

void Scanner::drop_closed() {
  for (Group& group : groups_) {
    std::erase_if(group.threads, [&](const Thread& thread) { return !may_match(*group.dfa, thread); });
  }
}

// Drops threads that lie within matches, and those whose every match another one makes as well, from further
// left.
void Scanner::merge(Group& group) {
  std::unordered_map<StateId, Thread> first;
  std::erase_if(group.threads, [&](const Thread& thread) {
    if (!may_match(*group.dfa, thread)) return true;
    const auto [known, is_new] = first.try_emplace(thread.state, thread);
    return !is_new && is_covered(*group.dfa, known->second, thread);
  });
  group.merge_at = group.threads.size() + merge_at_;
}

// Two threads in one state have the same future. The later one counts only if a validator may refuse the span
// of the earlier, or a match that ends between their starts takes the earlier away.
bool Scanner::is_covered(const Dfa& dfa, const Thread& earlier, const Thread& later) const {
  return std::ranges::all_of(dfa.open(later.state), [&](PatternId pattern) {
    if (automaton_->patterns()[index(pattern)].validator != Validator::kNone) return false;
    if (earlier.start < floors_[index(pattern)]) return later.start < floors_[index(pattern)];
    return std::ranges::none_of(pending_[index(pattern)], [&](const Pending& match) {
      return match.start < earlier.start && match.end > earlier.start && match.end <= later.start;
    });
  });
}

void Scanner::finish(std::vector<Match>& out) {
  if (finished_) throw InvalidArgument("the text has ended; reset() begins another");
  finished_ = true;
  for (Group& group : groups_) {
    for (const Thread& thread : group.threads) {
      for (const Dfa::LookEnd& end : group.dfa->look_ends(thread.state)) {
        if (end.before.has_edge()) note(end.pattern, thread.start, position_);
      }
    }
    group.threads.clear();
  }
  decide(out);
}

std::optional<std::int64_t> Scanner::open_start() const noexcept {
  std::optional<std::int64_t> least;
  for (const Group& group : groups_) {
    for (const Thread& thread : group.threads) {
      if (!group.dfa->flags(thread.state).holds) continue;
      const bool holds = std::ranges::any_of(group.dfa->open(thread.state), [&](PatternId pattern) {
        return automaton_->patterns()[index(pattern)].holds && thread.start >= floors_[index(pattern)];
      });
      if (!holds) continue;
      least = std::min(least.value_or(thread.start), thread.start);
      break;
    }
  }
  return least;
}

std::size_t Scanner::num_threads() const noexcept {
  std::size_t count = 0;
  for (const Group& group : groups_) count += group.threads.size();
  return count;
}

void Scanner::remember(std::span<const std::uint8_t> bytes) {
  recent_.insert(recent_.end(), bytes.begin(), bytes.end());
}

void Scanner::forget() {
  std::int64_t wanted = position_;
  for (const Group& group : groups_) {
    const auto first = std::ranges::find_if(
        group.threads, [&](const Thread& thread) { return group.dfa->flags(thread.state).validated; });
    if (first != group.threads.end()) wanted = std::min(wanted, first->start);
  }
  const auto surplus = static_cast<std::size_t>(wanted - recent_start_);
  if (surplus < kForgetAt) return;
  recent_.erase(recent_.begin(), recent_.begin() + static_cast<std::ptrdiff_t>(surplus));
  recent_start_ = wanted;
}

void Scanner::check_invariants() const {
  for (const Group& group : groups_) {
    AIRI_CHECK(std::ranges::is_sorted(group.threads, std::ranges::less(), &Thread::start))
        << "threads stand in the order of their starts";
    for (const Thread& thread : group.threads) {
      AIRI_CHECK(thread.start < position_) << "a thread has read a byte";
      AIRI_CHECK(group.dfa->flags(thread.state).open) << "more bytes can complete a match of a thread";
    }
  }
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    AIRI_CHECK(std::ranges::is_sorted(pending_[i], std::ranges::less(), &Pending::start))
        << "pending matches stand in the order of their starts";
    const bool listed =
        std::ranges::find(undecided_, PatternId{static_cast<std::int32_t>(i)}) != undecided_.end();
    AIRI_CHECK(listed == !pending_[i].empty()) << "what is pending is listed";
    AIRI_CHECK(pending_[i].empty() || pending_[i].front().start >= floors_[i])
        << "pending matches do not overlap";
  }
}

}  // namespace airi::guard
