#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "guard/automaton.h"
#include "guard/token_trie.h"
#include "guard/utf8.h"

namespace airi::guard {

enum class TokenId : std::int32_t {};

// Where an output stands: what its last byte is to looks back, and the open threads, wherever they started. A
// value; equal states have equal futures.
struct MaskState {
  struct Thread {
    std::uint16_t group = 0;
    StateId state{};
    friend auto operator<=>(const Thread&, const Thread&) = default;
  };
  std::uint16_t context = 0;
  Utf8State utf8 = Utf8State::kWhole;  // of texts
  std::vector<Thread> threads{};       // in order, without repetition
  friend auto operator<=>(const MaskState&, const MaskState&) = default;
};

struct TokenMasksOptions {
  std::size_t cache_bytes = std::size_t{64} << 20;
  // The output is shown as text and may be cut behind any token. Then tokens are forbidden too that no UTF-8
  // goes on with, and those behind which the end of the text, at its last whole character, would complete a
  // match. So every such text is its tokens' bytes, and none has a match, whyever it ended.
  bool text = false;
};

// Which next tokens would complete a match of an automaton's patterns. Never samples, and keeps no output.
//
// What is guaranteed: if every token of an output was allowed in the state before it, and `ends_match` was
// false where it ended, as it always is for texts, then no pattern matches anywhere in the byte string that
// the tokens spell, beginning right after the text that the first state was made of (which counts for looks
// back, and for matches that begin in it). It is about that string of bytes: not about what it means, nor
// about another way of writing the same. Patterns with validators are refused, as a mask would forbid what
// they let pass. Tokens without bytes, such as special ones, change nothing and are never forbidden.
//
// A state may forbid every token; only ending is left then, or not even that. Whoever samples must expect it.
//
// What a thread forbids depends on its place in the automaton only, not on the other threads: it is found
// once, by a walk over the tokens' tree that ends where the thread does, and kept. A mask is the union of
// some of those.
//
// Thread safety: all methods may be called from any thread.
// Invariant: the cache holds at most cache_bytes, or a single entry.
class TokenMasks {
 public:
  // `tokens` by id. Throws InvalidArgument where a pattern has a validator. O(bytes of all tokens), and more
  // for tokens in which matches begin.
  TokenMasks(std::shared_ptr<const Automaton> automaton, std::span<const std::string> tokens,
             const TokenMasksOptions& options = {});
  TokenMasks(const TokenMasks&) = delete;
  TokenMasks& operator=(const TokenMasks&) = delete;

  // The state after a text, whatever matches are within it; an output that begins there may not complete
  // those that are open at its end.
  [[nodiscard]] MaskState after(std::span<const std::uint8_t> text) const;
  // None where the token completes a match. Throws InvalidArgument for an id outside the vocabulary.
  [[nodiscard]] std::optional<MaskState> advance(const MaskState& state, TokenId token) const;
  // Writes one bit for each token, the lowest of the first word for token 0: set where it would complete a
  // match. Returns how many are set. REQUIRES: forbidden.size() == num_words().
  std::size_t fill(const MaskState& state, std::span<std::uint32_t> forbidden);
  // Whether the output's end would complete a match.
  [[nodiscard]] bool ends_match(const MaskState& state) const;

  // The state as bytes for a certificate; good for automata with the same canonical().
  [[nodiscard]] static std::string serialize(const MaskState& state);
  // Throws InvalidArgument where they are no state of this automaton.
  [[nodiscard]] MaskState restore(std::span<const std::uint8_t> bytes) const;

  [[nodiscard]] std::size_t vocab_size() const noexcept { return tokens_.size(); }
  [[nodiscard]] std::size_t num_words() const noexcept { return (tokens_.size() + 31) / 32; }
  [[nodiscard]] std::size_t num_cached();

 private:
  // Some tokens: as a list where they are few, else as a mask.
  struct TokenSet {
    std::vector<std::uint32_t> ids;
    std::vector<std::uint32_t> words;
    [[nodiscard]] std::size_t bytes() const noexcept {
      return 4 * (ids.size() + words.size()) + sizeof(TokenSet);
    }
  };

  [[nodiscard]] bool step(MaskState& state, std::uint8_t byte) const;
  [[nodiscard]] StateId begin(std::uint16_t context, std::size_t group) const noexcept {
    return contexts_[context][group];
  }
  // The next state of a thread, whether a match is completed on the way, and whether the thread is still
  // open.
  struct Step {
    StateId to{};
    bool ends = false;
    bool open = false;
  };
  [[nodiscard]] Step move(const Dfa& dfa, StateId state, std::uint8_t byte) const noexcept;
  void check_state(const MaskState& state) const;
  void find_contexts();
  void find_inner();
  void find_broken();
  [[nodiscard]] bool has_inner(const std::string& token) const;
  [[nodiscard]] TokenSet walk(const Dfa& dfa, StateId from) const;
  [[nodiscard]] TokenSet make_set(std::vector<std::uint32_t> ids) const;
  const TokenSet& forbidden_by(std::size_t group, StateId state) AIRI_ANNOTATE(requires_capability(mutex_));
  static void add(const TokenSet& set, std::span<std::uint32_t> words) noexcept;

  // Immutable after construction.
  std::shared_ptr<const Automaton> automaton_;
  std::vector<std::string> tokens_;
  TokenTrie trie_;
  TokenMasksOptions options_;
  std::array<std::uint16_t, kNumContexts>
      context_of_{};                             // bytes after which every group begins alike share one
  std::vector<std::vector<StateId>> contexts_;   // by context: where each group begins
  TokenSet inner_;                               // tokens with a match that begins within them
  std::array<TokenSet, kNumUtf8States> broken_;  // of texts: tokens that no UTF-8 goes on with

  Mutex mutex_;
  std::unordered_map<std::uint64_t, TokenSet> cache_ AIRI_GUARDED_BY(mutex_);  // by group and state
  std::size_t cached_bytes_ AIRI_GUARDED_BY(mutex_) = 0;
};

}  // namespace airi::guard
