#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace airi {

// A 128-bit block hash. Equal hashes are a hint, never a proof: the prefix index
// compares contents.
struct Hash128 {
  std::uint64_t lo = 0;
  std::uint64_t hi = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

using HashKey = std::array<std::uint8_t, 16>;

// What besides its tokens and its past determines the KV of a block.
enum class ExtraKind : std::uint8_t { kAdapter = 1, kSalt = 2, kMedia = 3 };

// One such fact: `bytes` of this kind hold from token `offset` of the request on.
struct ExtraKey {
  ExtraKind kind = ExtraKind::kSalt;
  std::int32_t offset = 0;
  std::vector<std::uint8_t> bytes;
};

// The extras of one block, encoded: typed and length-prefixed, hence injective.
struct BlockExtras {
  std::int32_t block = 0;
  std::vector<std::uint8_t> bytes;
};

// Groups `extras` by the block their offset lies in, ascending by block; within a
// block the order given is kept. REQUIRES: offsets are not negative.
[[nodiscard]] std::vector<BlockExtras> encode_extras(std::span<const ExtraKey> extras,
                                                     std::int32_t block_size);

// Computes the keyed hash chain h_i = H(key, h_{i-1}, tokens of block i, extras of block i)
// of full blocks. Never stores tokens; never decides whether two blocks are equal.
//
// H is a Toeplitz-extended NH sum: two rows of 64 x 64 -> 128 bit products of keyed
// words, then a bijective-per-half mixer. Over random keys two different blocks collide
// with probability about 2^-128; the bits are the same on every CPU.
//
// Thread safety: immutable after construction.
class HashChain {
 public:
  // `seed` names model, KV dtype and layout. Throws InvalidArgument unless block_size >= 1.
  HashChain(const HashKey& key, std::span<const std::uint8_t> seed, std::int32_t block_size);

  [[nodiscard]] std::int32_t block_size() const noexcept { return block_size_; }
  [[nodiscard]] const Hash128& root() const noexcept { return root_; }

  // REQUIRES: tokens.size() == block_size(). Does not allocate.
  [[nodiscard]] Hash128 next(const Hash128& parent, std::span<const std::int32_t> tokens,
                             std::span<const std::uint8_t> extras) const noexcept;

  // Appends to `hashes` what is missing for every full block of `tokens`.
  void extend(std::span<const std::int32_t> tokens, std::span<const BlockExtras> extras,
              std::vector<Hash128>& hashes) const;

 private:
  [[nodiscard]] Hash128 hash_bytes(std::span<const std::uint8_t> bytes) const noexcept;

  // Immutable after construction.
  std::int32_t block_size_;
  std::vector<std::uint64_t> keys_;  // one per word of a message, plus two for the second row
  Hash128 root_;
};

}  // namespace airi
