#include "kv/hash_chain.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/ids.h"

namespace airi {
namespace {

__extension__ typedef unsigned __int128 U128;

constexpr std::size_t kStateWords = 2;  // the parent's hash
constexpr std::size_t kChunkWords = 8;  // of a byte string, hashed 64 bytes at a time
constexpr std::size_t kRowShift = 2;    // the second row uses the keys two words further on

// The finaliser of splitmix64: a bijection of 64-bit words.
constexpr std::uint64_t mix(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

std::uint64_t load_le(const std::uint8_t* bytes, std::size_t count) noexcept {
  std::uint64_t word = 0;
  for (std::size_t i = 0; i < count; ++i) word |= std::uint64_t{bytes[i]} << (8 * i);
  return word;
}

std::uint64_t pair_of(std::int32_t low, std::int32_t high) noexcept {
  return std::uint64_t{static_cast<std::uint32_t>(low)} |
         (std::uint64_t{static_cast<std::uint32_t>(high)} << 32);
}

// Two rows of sum (word_2i + key_2i) * (word_2i+1 + key_2i+1) modulo 2^128.
class NhSum {
 public:
  explicit NhSum(const std::uint64_t* keys) noexcept : keys_(keys) {}

  void add(std::size_t at, std::uint64_t a, std::uint64_t b) noexcept {
    const std::uint64_t* k = keys_ + at;
    first_ += static_cast<U128>(a + k[0]) * (b + k[1]);
    second_ += static_cast<U128>(a + k[kRowShift]) * (b + k[kRowShift + 1]);
  }

  [[nodiscard]] Hash128 finish() const noexcept {
    return {half(first_, 0x9E3779B97F4A7C15ULL), half(second_, 0xD6E8FEB86659FD93ULL)};
  }

 private:
  static std::uint64_t half(U128 sum, std::uint64_t odd) noexcept {
    const auto low = static_cast<std::uint64_t>(sum);
    const auto high = static_cast<std::uint64_t>(sum >> 64);
    return mix(low + high * odd);
  }

  const std::uint64_t* keys_;
  U128 first_ = 0;
  U128 second_ = 0;
};

void append_le(std::vector<std::uint8_t>& out, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

}  // namespace

std::vector<BlockExtras> encode_extras(std::span<const ExtraKey> extras, std::int32_t block_size) {
  std::vector<const ExtraKey*> ordered;
  ordered.reserve(extras.size());
  for (const ExtraKey& extra : extras) ordered.push_back(&extra);
  std::stable_sort(ordered.begin(), ordered.end(), [=](const ExtraKey* a, const ExtraKey* b) {
    return a->offset / block_size < b->offset / block_size;
  });
  std::vector<BlockExtras> blocks;
  for (const ExtraKey* extra : ordered) {
    const std::int32_t block = extra->offset / block_size;
    if (blocks.empty() || blocks.back().block != block) blocks.push_back({block, {}});
    std::vector<std::uint8_t>& out = blocks.back().bytes;
    append_le(out, static_cast<std::uint64_t>(extra->kind), 1);
    append_le(out, static_cast<std::uint64_t>(extra->offset), 8);
    append_le(out, extra->bytes.size(), 8);
    out.insert(out.end(), extra->bytes.begin(), extra->bytes.end());
  }
  return blocks;
}

HashChain::HashChain(const HashKey& key, std::span<const std::uint8_t> seed, std::int32_t block_size)
    : block_size_(block_size) {
  if (block_size < 1) {
    throw InvalidArgument("block_size must be at least 1, got " + std::to_string(block_size));
  }
  const auto token_words = static_cast<std::size_t>(ceil_div(block_size, 2));
  const std::size_t words = std::max(token_words + 1, kChunkWords) + 2 * kStateWords;
  std::uint64_t a = load_le(key.data(), 8);
  std::uint64_t b = load_le(key.data() + 8, 8);
  for (std::size_t i = 0; i < words + kRowShift; ++i) {
    a = mix(a + 0x9E3779B97F4A7C15ULL);
    b = mix(b ^ std::rotl(a, 32));
    keys_.push_back(a + b);
  }
  std::vector<std::uint8_t> message;
  append_le(message, static_cast<std::uint64_t>(block_size), 8);
  message.insert(message.end(), seed.begin(), seed.end());
  root_ = hash_bytes(message);
}

Hash128 HashChain::next(const Hash128& parent, std::span<const std::int32_t> tokens,
                        std::span<const std::uint8_t> extras) const noexcept {
  // The parent comes last: a chain then waits for one product per block only.
  NhSum sum(keys_.data());
  const std::size_t pairs = tokens.size() / 4;
  std::size_t at = 2 * kStateWords;
  for (std::size_t i = 0; i < pairs; ++i, at += 2) {
    const std::int32_t* t = tokens.data() + 4 * i;
    sum.add(at, pair_of(t[0], t[1]), pair_of(t[2], t[3]));
  }
  if (const std::size_t rest = tokens.size() - 4 * pairs; rest > 0) {
    const std::int32_t* t = tokens.data() + 4 * pairs;
    sum.add(at, pair_of(t[0], rest > 1 ? t[1] : 0), rest > 2 ? pair_of(t[2], 0) : 0);
  }
  if (!extras.empty()) {
    const Hash128 digest = hash_bytes(extras);
    sum.add(kStateWords, digest.lo, digest.hi);
  }
  sum.add(0, parent.lo, parent.hi);
  return sum.finish();
}

Hash128 HashChain::hash_bytes(std::span<const std::uint8_t> bytes) const noexcept {
  Hash128 state{bytes.size(), 0};
  for (std::size_t start = 0; start == 0 || start < bytes.size(); start += 8 * kChunkWords) {
    NhSum sum(keys_.data());
    const auto chunk = bytes.subspan(start, std::min(8 * kChunkWords, bytes.size() - start));
    std::array<std::uint64_t, kChunkWords> words{};
    for (std::size_t i = 0; 8 * i < chunk.size(); ++i) {
      words[i] = load_le(chunk.data() + 8 * i, std::min<std::size_t>(8, chunk.size() - 8 * i));
    }
    for (std::size_t i = 0; i < kChunkWords; i += 2) {
      sum.add(kStateWords + i, words[i], words[i + 1]);
    }
    sum.add(0, state.lo, state.hi);
    state = sum.finish();
  }
  return state;
}

void HashChain::extend(std::span<const std::int32_t> tokens, std::span<const BlockExtras> extras,
                       std::vector<Hash128>& hashes) const {
  const auto size = static_cast<std::size_t>(block_size_);
  Hash128 parent = hashes.empty() ? root_ : hashes.back();
  auto extra = extras.begin();
  for (std::size_t i = hashes.size(); i < tokens.size() / size; ++i) {
    const auto block = static_cast<std::int32_t>(i);
    while (extra != extras.end() && extra->block < block) ++extra;
    std::span<const std::uint8_t> own;
    if (extra != extras.end() && extra->block == block) own = extra->bytes;
    parent = next(parent, tokens.subspan(i * size, size), own);
    hashes.push_back(parent);
  }
}

}  // namespace airi
