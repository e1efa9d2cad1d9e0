#include "guard/token_masks.h"

#include <algorithm>
#include <bit>
#include <map>
#include <ranges>

#include "base/check.h"
#include "base/ids.h"

namespace airi::guard {
namespace {

void put(std::string& out, std::uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>((value >> shift) & 0xFF));
}

std::uint32_t get(std::span<const std::uint8_t> bytes, std::size_t word) {
  std::uint32_t value = 0;
  for (std::size_t i = 4; i-- > 0;) value = (value << 8) | bytes[4 * word + i];
  return value;
}

void set_bit(std::span<std::uint32_t> words, std::uint32_t id) {
  words[id / 32] |= std::uint32_t{1} << (id % 32);
}

std::span<const std::uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

// Whether the end of the text would complete a match.
bool ends_at_edge(const Dfa& dfa, StateId state) {
  return std::ranges::any_of(dfa.look_ends(state),
                             [](const Dfa::LookEnd& end) { return end.before.has_edge(); });
}

}  // namespace

TokenMasks::TokenMasks(std::shared_ptr<const Automaton> automaton, std::span<const std::string> tokens,
                       const TokenMasksOptions& options)
    : automaton_(std::move(automaton)),
      tokens_(tokens.begin(), tokens.end()),
      trie_(tokens_),
      options_(options) {
  for (const Pattern& pattern : automaton_->patterns()) {
    if (pattern.validator == Validator::kNone) continue;
    throw InvalidArgument("pattern '" + pattern.name + "' has a validator: token masks cannot ask it");
  }
  find_contexts();
  find_inner();
  if (options_.text) find_broken();
}

void TokenMasks::find_contexts() {
  std::map<std::vector<StateId>, std::uint16_t> known;
  for (std::size_t before = 0; before < kNumContexts; ++before) {
    std::vector<StateId> starts;
    for (const Dfa& dfa : automaton_->groups()) starts.push_back(dfa.start(before));
    const auto [context, is_new] = known.try_emplace(starts, static_cast<std::uint16_t>(contexts_.size()));
    if (is_new) contexts_.push_back(std::move(starts));
    context_of_[before] = context->second;
  }
}

void TokenMasks::find_inner() {
  std::vector<std::uint32_t> ids;
  for (std::uint32_t id = 0; id < tokens_.size(); ++id) {
    if (has_inner(tokens_[id])) ids.push_back(id);
  }
  inner_ = make_set(std::move(ids));
}

// Whether a match that begins after the first byte ends within the token, whatever stands around it.
bool TokenMasks::has_inner(const std::string& token) const {
  const auto bytes = bytes_of(token);
  for (std::size_t start = 1; start < bytes.size(); ++start) {
    for (const Dfa& dfa : automaton_->groups()) {
      StateId state = dfa.start(bytes[start - 1]);
      for (const std::uint8_t byte : bytes.subspan(start)) {
        const Step step = move(dfa, state, byte);
        if (step.ends) return true;
        state = step.to;
        if (!step.open) break;
      }
      if (options_.text && ends_at_edge(dfa, state)) return true;
    }
  }
  return false;
}

void TokenMasks::find_broken() {
  for (std::size_t from = 0; from < kNumUtf8States; ++from) {
    std::vector<std::uint32_t> ids;
    for (std::uint32_t id = 0; id < tokens_.size(); ++id) {
      std::optional<Utf8State> state = static_cast<Utf8State>(from);
      for (const std::uint8_t byte : bytes_of(tokens_[id])) {
        if (state) state = next_utf8(*state, byte);
      }
      if (!state) ids.push_back(id);
    }
    broken_[from] = make_set(std::move(ids));
  }
}

TokenMasks::Step TokenMasks::move(const Dfa& dfa, StateId state, std::uint8_t byte) const noexcept {
  Step step;
  if (dfa.flags(state).looks) {
    // A character of several bytes may be cut off again, and the text end before it.
    const bool may_end = options_.text && begins_long_character(byte);
    for (const Dfa::LookEnd& end : dfa.look_ends(state)) {
      step.ends = step.ends || end.before.contains(byte) || (may_end && end.before.has_edge());
    }
  }
  step.to = dfa.next(state, byte);
  const StateFlags flags = dfa.flags(step.to);
  step.ends = step.ends || flags.ends;
  step.open = flags.open;
  return step;
}

// False where the byte completes a match.
bool TokenMasks::step(MaskState& state, std::uint8_t byte) const {
  const std::span<const Dfa> groups = automaton_->groups();
  bool allowed = true;
  const auto move_thread = [&](std::size_t group, StateId from) -> std::optional<MaskState::Thread> {
    const Step step = move(groups[group], from, byte);
    allowed = allowed && !step.ends;
    if (!step.open) return std::nullopt;
    return MaskState::Thread{static_cast<std::uint16_t>(group), step.to};
  };
  std::size_t kept = 0;
  for (std::size_t i = 0; i < state.threads.size(); ++i) {
    const auto moved = move_thread(state.threads[i].group, state.threads[i].state);
    if (moved) state.threads[kept++] = *moved;
  }
  state.threads.resize(kept);
  for (std::size_t group = 0; group < groups.size(); ++group) {
    if (const auto begun = move_thread(group, begin(state.context, group))) state.threads.push_back(*begun);
  }
  std::ranges::sort(state.threads);
  state.threads.erase(std::ranges::unique(state.threads).begin(), state.threads.end());
  state.context = context_of_[byte];
  if (options_.text) {
    const std::optional<Utf8State> utf8 = next_utf8(state.utf8, byte);
    allowed = allowed && utf8;
    state.utf8 = utf8.value_or(Utf8State::kWhole);
  }
  return allowed;
}

MaskState TokenMasks::after(std::span<const std::uint8_t> text) const {
  MaskState state{.context = context_of_[kTextStart]};
  for (const std::uint8_t byte : text) static_cast<void>(step(state, byte));
  return state;
}

std::optional<MaskState> TokenMasks::advance(const MaskState& state, TokenId token) const {
  if (raw(token) < 0 || index(token) >= tokens_.size()) {
    throw InvalidArgument("token " + std::to_string(raw(token)) + " is outside the vocabulary of " +
                          std::to_string(tokens_.size()));
  }
  check_state(state);
  MaskState next = state;
  for (const std::uint8_t byte : bytes_of(tokens_[index(token)])) {
    if (!step(next, byte)) return std::nullopt;
  }
  if (options_.text && !tokens_[index(token)].empty() && ends_match(next)) return std::nullopt;
  return next;
}

std::size_t TokenMasks::fill(const MaskState& state, std::span<std::uint32_t> forbidden) {
  if (forbidden.size() != num_words()) {
    throw InvalidArgument("a mask of this vocabulary takes " + std::to_string(num_words()) + " words, got " +
                          std::to_string(forbidden.size()));
  }
  check_state(state);
  std::ranges::fill(forbidden, 0U);
  add(inner_, forbidden);
  add(broken_[static_cast<std::size_t>(state.utf8)], forbidden);
  {
    const MutexLock lock(mutex_);
    for (std::size_t group = 0; group < automaton_->groups().size(); ++group) {
      add(forbidden_by(group, begin(state.context, group)), forbidden);
    }
    for (const MaskState::Thread& thread : state.threads)
      add(forbidden_by(thread.group, thread.state), forbidden);
  }
  std::size_t count = 0;
  for (const std::uint32_t word : forbidden) count += static_cast<std::size_t>(std::popcount(word));
  return count;
}

bool TokenMasks::ends_match(const MaskState& state) const {
  check_state(state);
  return std::ranges::any_of(state.threads, [&](const MaskState::Thread& thread) {
    return ends_at_edge(automaton_->groups()[thread.group], thread.state);
  });
}

const TokenMasks::TokenSet& TokenMasks::forbidden_by(std::size_t group, StateId state) {
  const std::uint64_t key = (std::uint64_t{group} << 32) | static_cast<std::uint32_t>(state);
  const auto known = cache_.find(key);
  if (known != cache_.end()) return known->second;
  TokenSet set = walk(automaton_->groups()[group], state);
  if (cached_bytes_ + set.bytes() > options_.cache_bytes) {
    cache_.clear();
    cached_bytes_ = 0;
  }
  cached_bytes_ += set.bytes();
  return cache_.emplace(key, std::move(set)).first->second;
}

// The tokens that complete a match of the thread; below a prefix that does, all do.
TokenMasks::TokenSet TokenMasks::walk(const Dfa& dfa, StateId from) const {
  std::vector<std::uint32_t> ids;
  std::vector<StateId> path(trie_.max_depth() + 1);
  path[0] = from;
  const std::span<const TokenTrie::Node> nodes = trie_.nodes();
  for (std::size_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    const Step step = move(dfa, path[node.depth - 1], node.byte);
    if (step.ends) {
      const auto below = trie_.order().subspan(node.first_token, node.end_token - node.first_token);
      ids.insert(ids.end(), below.begin(), below.end());
    } else if (options_.text && ends_at_edge(dfa, step.to)) {
      for (std::uint32_t k = node.first_token; k < node.end_token; ++k) {
        const std::uint32_t id = trie_.order()[k];
        if (tokens_[id].size() > node.depth) break;  // the shortest come first
        ids.push_back(id);
      }
    }
    path[node.depth] = step.to;
    // No token below has all that a match still needs, such as the @ of an address.
    const bool is_hopeless = (dfa.needs(step.to) & ~node.below) != 0;
    i = step.ends || !step.open || is_hopeless ? node.skip : i + 1;
  }
  return make_set(std::move(ids));
}

TokenMasks::TokenSet TokenMasks::make_set(std::vector<std::uint32_t> ids) const {
  TokenSet set;
  if (ids.size() < num_words() / 8) {
    ids.shrink_to_fit();
    set.ids = std::move(ids);
    return set;
  }
  set.words.resize(num_words());
  for (const std::uint32_t id : ids) set_bit(set.words, id);
  return set;
}

void TokenMasks::add(const TokenSet& set, std::span<std::uint32_t> words) noexcept {
  for (std::size_t i = 0; i < set.words.size(); ++i) words[i] |= set.words[i];
  for (const std::uint32_t id : set.ids) set_bit(words, id);
}

std::string TokenMasks::serialize(const MaskState& state) {
  std::string out;
  put(out, state.context | (std::uint32_t{static_cast<std::uint8_t>(state.utf8)} << 16));
  for (const MaskState::Thread& thread : state.threads) {
    put(out, thread.group);
    put(out, static_cast<std::uint32_t>(thread.state));
  }
  return out;
}

MaskState TokenMasks::restore(std::span<const std::uint8_t> bytes) const {
  if (bytes.size() % 8 != 4) throw InvalidArgument("the bytes are no state of these masks");
  MaskState state;
  const auto short_word = [&](std::size_t word) {
    const std::uint32_t value = get(bytes, word);
    if (value > 0xFFFF) throw InvalidArgument("the bytes are no state of these masks");
    return static_cast<std::uint16_t>(value);
  };
  const std::uint32_t utf8 = get(bytes, 0) >> 16;
  if (utf8 >= (options_.text ? kNumUtf8States : 1))
    throw InvalidArgument("the bytes are no state of these masks");
  state.context = static_cast<std::uint16_t>(get(bytes, 0));
  state.utf8 = static_cast<Utf8State>(utf8);
  for (std::size_t word = 1; word < bytes.size() / 4; word += 2) {
    state.threads.push_back({short_word(word), static_cast<StateId>(get(bytes, word + 1))});
  }
  if (std::ranges::adjacent_find(state.threads, std::ranges::greater_equal()) != state.threads.end()) {
    throw InvalidArgument("the bytes are no state of these masks");
  }
  check_state(state);
  return state;
}

void TokenMasks::check_state(const MaskState& state) const {
  const std::span<const Dfa> groups = automaton_->groups();
  const bool known = state.context < contexts_.size() &&
                     std::ranges::all_of(
                         state.threads,
                         [&](const MaskState::Thread& thread) {
                           return thread.group < groups.size() && raw(thread.state) > 0 &&
                                  raw(thread.state) < groups[thread.group].num_states();
                         });
  if (!known) throw InvalidArgument("this is no state of these masks");
}

std::size_t TokenMasks::num_cached() {
  const MutexLock lock(mutex_);
  return cache_.size();
}

}  // namespace airi::guard
